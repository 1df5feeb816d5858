"""Training of classifiers: the engine of detectors, and a backbone file that they start from."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dcn_det.cli import test, train
from dcn_det.config import load_as, load_config
from dcn_det.config.classifier import ClassificationConfig
from dcn_det.data.sample import make_digits
from dcn_det.engine.detection import DetectionTask
from dcn_det.engine.session import Session
from dcn_det.engine.training import train as train_from_python
from dcn_det.errors import UserError
from dcn_det.weights import checkpoint, storage
from dcn_det.weights.files import load_into
from tests.conftest import ROOT
from tests.engine.launching import run_command, start, together, until
from tests.engine.test_resume import newest, same

AIR = ROOT / "configs" / "sample" / "classifier" / "air.yaml"
SETTINGS: dict[str, Any] = {
    "device": "cpu",
    "model": {
        "kind": "classifier",
        "label_smoothing": 0.1,
        "backbone": {
            "kind": "resnet18",
            "width": 8,
            "stem_width": 8,
            "norm": "bn",
            "frozen_stages": 0,
            "weights": "none",
            "res5_stride": 2,
            "res5_dilation": 1,
        },
    },
    "data": {"size": 32, "resize": 36, "workers": 0},
    "train": {
        "iterations": 12,
        "batch_size": 4,
        "reference_batch": 4,
        "log_every": 1,
        "checkpoint_every": 3,
        "warmup": {"iterations": 2},
        "optimizer": {"lr": 0.01},
    },
}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_digits(tmp_path_factory.mktemp("digits") / "set", train_images=40, val_images=20)


@pytest.fixture
def config(tmp_path: Path, digits: Path) -> Path:
    path = tmp_path / "classifier.yaml"
    path.write_text(yaml.safe_dump(SETTINGS | {"data": SETTINGS["data"] | {"root": str(digits)}}))
    return path


def run(arguments: list[str]) -> int:
    return train.main(arguments)


def records(folder: Path, kind: str) -> list[dict[str, float]]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [record for record in lines if record["kind"] == kind]


def test_a_stopped_run_continues_to_the_bit(config: Path, tmp_path: Path) -> None:
    """With running statistics, averaging, passes, workers and evaluations."""
    common = [str(config), "train.ema_decay=0.9", "train.accumulate=2", "train.batch_size=2", "train.eval_every=4"]
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert run([*common, "--output", str(whole)]) == 0
    assert run([*common, "--output", str(part), "--stop-at", "5"]) == 0
    assert not (part / "backbone.safetensors").exists()
    assert run([*common, "--output", str(part), "--resume", "data.workers=2"]) == 0
    states = [newest(folder) for folder in (whole, part)]
    for state in states:
        state["config"]["data"].pop("workers")
    assert same(*states), "model, statistics, optimizer, average, history, generators"
    files = [storage.read(folder / "backbone.safetensors") for folder in (whole, part)]
    assert same(*files)


def test_a_killed_run_continues_to_the_bit(config: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run([str(config), "--output", str(whole)]) == 0
    process = start(run, [str(config), "--output", str(broken)])
    assert until(lambda: bool(list(broken.glob("iteration_*.pth"))) or not process.is_alive(), 60, every=0.001)
    process.kill()
    process.join()
    assert run([str(config), "--output", str(broken), "--auto-resume"]) == 0
    assert same(newest(whole), newest(broken))


def test_two_processes_measure_every_image_once_and_resume_to_the_bit(config: Path, tmp_path: Path) -> None:
    common = [str(config), "train.iterations=4", "train.batch_size=2", "test.batch_size=3"]
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert together(2, run, [*common, "--output", str(whole)]) == [0, 0]
    assert together(2, run, [*common, "--output", str(part), "--stop-at", "3"]) == [0, 0]
    assert together(2, run, [*common, "--output", str(part), "--resume"]) == [0, 0]
    assert same(newest(whole), newest(part))
    (measured,) = records(whole, "test")
    assert run([*common, "--output", str(whole), "--resume"]) == 0
    assert 20 * measured["top1"] == pytest.approx(round(20 * measured["top1"]), abs=1e-9)


def test_metrics_at_intervals_of_epochs_and_at_the_end(config: Path, tmp_path: Path) -> None:
    result = train_from_python(
        config, tmp_path / "run", train={"epochs": 2.5, "eval_every": 1, "eval_unit": "epochs", "precision": "bfloat16"}
    )
    assert [record["iteration"] for record in records(result.output, "test")] == [10, 20, 25]
    assert 0 <= result.metrics["top1"] <= result.metrics["top5"] <= 1
    assert result.files == {"backbone": tmp_path / "run" / "backbone.safetensors"}


def test_it_learns(digits: Path, config: Path, tmp_path: Path) -> None:
    easy = tmp_path / "easy"
    for split in ("train", "val"):  # two digits, seen in training and evaluation
        for digit in "01":
            shutil.copytree(digits / "train" / digit, easy / split / digit)
    overrides = [f"data.root={easy}", "data.scale=[1, 1]", "data.ratio=[1, 1]", "data.flip=none", "data.resize=32"]
    adam = "train.optimizer={kind: adamw, lr: 3e-3}"
    assert run([str(config), *overrides, adam, "train.iterations=60", "--output", str(tmp_path / "run")]) == 0
    assert newest(tmp_path / "run")["history"][-1]["top1"] == 1


def detector(*overrides: str) -> Session:
    narrow = ["data.root=" + str(ROOT / "datasets" / "sample"), *overrides]
    return Session(DetectionTask(load_config(ROOT / "configs" / "sample" / "faster_rcnn_air.yaml", *narrow)))


@pytest.fixture(scope="module")
def air(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a short run of the sample's classifier."""
    out = tmp_path_factory.mktemp("air") / "run"
    short = ["train.iterations=2", "train.warmup.kind=none"]
    assert run([str(AIR), f"data.root={digits}", *short, "--output", str(out)]) == 0
    return out


def test_the_detector_of_the_sample_starts_from_the_classifiers_backbone(
    air: Path, tmp_path: Path, sample_root: Path
) -> None:
    file = air / "backbone.safetensors"
    common = [str(ROOT / "configs" / "sample" / "faster_rcnn_air.yaml"), f"data.root={sample_root}"]
    short = [
        "data.resize={short_side: 96, max_side: 96}",
        "train.iterations=1",
        "train.batch_size=1",
        "train.warmup.kind=none",
    ]
    given = f"model.backbone.weights={file}"
    assert train.main([*common, *short, given, "train.optimizer.lr=1e-30", "--output", str(tmp_path / "run")]) == 0
    trained = checkpoint.load(tmp_path / "run" / "last.pth")["model"]
    classifier = checkpoint.load(air / "last.pth")["model"]
    names = [name for name in trained if name.startswith("backbone.")]
    assert {name for name in classifier if name.startswith("backbone.")} == set(names)
    learned = [name for name in names if not re.search(r"running_|num_batches", name)]
    assert len(learned) > 300
    for name in learned:
        torch.testing.assert_close(trained[name], classifier[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.backbone.width=10"], r"layer1\.0\.branch1\.\S+ is"),
        (["model.backbone.norm=gn"], r"running_mean.*not part of the network"),
        (["model.backbone.stem_pool=ceil"], r"add model\.backbone\.stem_pool=pad"),
        (["model.backbone.preprocess.mean=[0, 0, 0]"], r"add model\.backbone\.preprocess\.mean="),
        (["model.backbone={kind: resnet18, norm: bn, frozen_stages: 0}"], r"conv1\.weight|stride_on"),
    ],
)
def test_a_backbone_that_does_not_fit_is_refused_by_name(
    air: Path, sample_root: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        detector(f"data.root={sample_root}", *overrides, f"model.backbone.weights={air / 'backbone.safetensors'}")


def test_a_damaged_or_incomplete_backbone_is_refused(air: Path, tmp_path: Path, sample_root: Path) -> None:
    content = storage.read(air / "backbone.safetensors")
    content["model"].pop("layer4.2.bn2.running_var")
    checkpoint.save(tmp_path / "less.safetensors", content)
    with pytest.raises(UserError, match=r"layer4\.2\.bn2\.running_var 256 is missing"):
        detector(f"data.root={sample_root}", f"model.backbone.weights={tmp_path / 'less.safetensors'}")


def test_frozen_detectors_take_the_statistics(config: Path, tmp_path: Path) -> None:
    """As the configs of the paper do: batch norm is trained in classification and constant in detection."""
    from dcn_det.models.backbones.resnet import ResNet

    file = train_from_python(config, tmp_path / "run").files["backbone"]
    state = storage.read(file)["model"]
    network = ResNet("resnet18", width=8, stem_width=8)
    load_into(network, state, source=file)
    for name in ("bn1.running_mean", "layer4.1.bn2.running_var"):
        assert torch.equal(network.state_dict()[name], state[name])
    assert not torch.equal(state["bn1.running_mean"], torch.zeros(8)), "statistics were collected"


def test_weights_of_a_classifier_are_no_detector(air: Path) -> None:
    common = [str(ROOT / "configs" / "sample" / "faster_rcnn_air.yaml"), "--weights"]
    with pytest.raises(UserError, match=r"model\.kind classifier"):
        test.main([*common, str(air / "last.pth")])
    with pytest.raises(UserError, match=r"model\.backbone\.weights"):
        test.main([*common, str(air / "backbone.safetensors")])


def test_a_test_measures_the_images_as_training_does(config: Path, tmp_path: Path) -> None:
    assert run([str(config), "train.iterations=4", "--output", str(tmp_path / "run")]) == 0
    (measured,) = records(tmp_path / "run", "test")
    assert test.main([str(config), "--weights", str(tmp_path / "run" / "last.pth")]) == 0
    metrics = json.loads((tmp_path / "run" / "test" / "metrics.json").read_text())["metrics"]
    assert metrics == {name: measured[name] for name in ("top1", "top5")}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.size=300", "resize 256 is below size 300"),
        ("data.scale=[0.5, 0.2]", "scale"),
        ("data.rsize=3", "did you mean 'resize'"),
        ("train.best_metric=AP", r"train\.best_metric.*top1"),
        ("model.backbone.norm=frozen_bn", r"zero_init_residual|frozen layers"),
        ("model.label_smoothing=1", "label_smoothing"),
    ],
)
def test_wrong_settings(override: str, message: str, digits: Path) -> None:
    with pytest.raises(UserError, match=message):
        run([str(ROOT / "configs" / "imagenet" / "air.yaml"), override, f"data.root={digits}", "--dry-run"])


@pytest.mark.parametrize("name", ["air", "resnet101"])
def test_imagenet_configs_fit_the_detectors(name: str) -> None:
    """Detectors need no setting but the file: layout and preprocessing are those of their configs."""
    settings = load_as(ClassificationConfig, ROOT / "configs" / "imagenet" / f"{name}.yaml")
    backbone: Any = settings.model.backbone
    assert (backbone.norm, backbone.frozen_stages, backbone.res5_stride, backbone.res5_dilation) == ("bn", 0, 2, 1)
    assert settings.train.epochs == 90 and settings.train.optimizer.lr == 0.1
    from dcn_det.weights.settings import differences, of_backbone

    recorded = of_backbone(settings.model_dump(mode="json"))
    assert len(recorded) == 6
    file = f"rfcn_{'air' if name == 'air' else 'r101'}"
    detection = load_config(ROOT / "configs" / "coco" / f"{file}.yaml", "model.backbone.weights=backbone.safetensors")
    assert differences(detection, recorded) == {}


def test_unusable_data_end_with_code_two_and_one_line(config: Path, digits: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(digits, bad)
    (bad / "train" / "3" / "000003.jpg").write_bytes(b"no image")
    arguments = ["tools/train_classifier.py", str(config), f"data.root={bad}", "--output", str(tmp_path / "run")]
    code, text = run_command(arguments, data="")
    assert code == 2 and "Traceback" not in text
    (line,) = re.findall(r"^error: .*$", text, re.MULTILINE)
    assert "3/000003.jpg" in line
