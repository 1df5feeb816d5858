"""Training, testing and the commands with a segmentation network: the same as for detectors."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image as PillowImage

import dcn_det
from dcn_det.cli import analyze, evaluate, infer, model_info, test, train
from dcn_det.cli import config as config_command
from dcn_det.data.sample.masks import make_sample_masks
from dcn_det.errors import UserError
from tests.data.mask_trees import cityscapes_tree, voc_tree
from tests.engine.launching import start, together, until
from tests.engine.test_plain_train import plain_train
from tests.engine.test_resume import newest, same

SETTINGS: dict[str, Any] = {
    "device": "cpu",
    "model": {
        "kind": "deeplab",
        "channels": 16,
        "hidden_init": "he",
        "backbone": {
            "kind": "resnet18",
            "width": 8,
            "stem_width": 8,
            "norm": "bn",
            "frozen_stages": 0,
            "weights": "none",
            "deform": {"blocks": ["res5b"], "offset_groups": 2},
        },
    },
    "data": {"kind": "sample_masks", "resize": {"short_side": 96, "max_side": 96}, "workers": 0},
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

TRAINED_IDS = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
"""Label ids of the 19 classes of Cityscapes that are evaluated."""


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sample_masks(tmp_path_factory.mktemp("masks") / "set", train_images=12, val_images=5)


@pytest.fixture
def config(tmp_path: Path, masks: Path) -> Path:
    path = tmp_path / "deeplab.yaml"
    path.write_text(yaml.safe_dump(SETTINGS | {"data": SETTINGS["data"] | {"root": str(masks)}}))
    return path


@pytest.fixture(scope="module")
def trained(masks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a short run, with its config next to it."""
    folder = tmp_path_factory.mktemp("trained")
    path = folder / "deeplab.yaml"
    path.write_text(yaml.safe_dump(SETTINGS | {"data": SETTINGS["data"] | {"root": str(masks)}}))
    assert run([str(path), "train.iterations=3", "train.warmup.kind=none", "--output", str(folder / "run")]) == 0
    return folder


@pytest.fixture(scope="module")
def tested(trained: Path) -> Path:
    """Folder of a test of it."""
    arguments = [str(trained / "deeplab.yaml"), "--weights", str(trained / "run" / "last.pth")]
    assert test.main([*arguments, "--output", str(trained / "test")]) == 0
    return trained / "test"


def run(arguments: list[str]) -> int:
    return train.main(arguments)


def measured(folder: Path) -> dict[str, float]:
    values: dict[str, float] = json.loads((folder / "metrics.json").read_text())["metrics"]
    return values


def test_a_stopped_run_continues_to_the_bit(config: Path, tmp_path: Path) -> None:
    """With random crops and flips, averaging, passes, workers and evaluations."""
    common = [str(config), "train.ema_decay=0.9", "train.accumulate=2", "train.batch_size=2", "train.eval_every=4"]
    common += ["data.flip=random", "data.crop=[64, 80]"]
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert run([*common, "--output", str(whole)]) == 0
    assert run([*common, "--output", str(part), "--stop-at", "5"]) == 0
    assert run([*common, "--output", str(part), "--resume", "data.workers=2"]) == 0
    states = [newest(folder) for folder in (whole, part)]
    for state in states:
        state["config"]["data"].pop("workers")
    assert same(*states), "model, statistics, optimizer, average, history, generators"


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
    common = [str(config), "train.iterations=4", "train.batch_size=2", "model.backbone.norm=gn"]
    one, whole, part = (tmp_path / name for name in ("one", "whole", "part"))
    assert together(2, run, [*common, "--output", str(whole)]) == [0, 0]
    assert together(2, run, [*common, "--output", str(part), "--stop-at", "3"]) == [0, 0]
    assert together(2, run, [*common, "--output", str(part), "--resume"]) == [0, 0]
    assert same(newest(whole), newest(part))
    assert run([*common, "train.batch_size=4", "--output", str(one)]) == 0
    for metric, value in newest(one)["history"][-1].items():
        assert newest(whole)["history"][-1][metric] == pytest.approx(value, abs=0.02), metric
    arguments = [str(config), "model.backbone.norm=gn", "--weights", str(whole / "last.pth")]
    assert together(2, test.main, [*arguments, "--output", str(tmp_path / "two")]) == [0, 0]
    assert test.main([*arguments, "--output", str(tmp_path / "single")]) == 0
    assert measured(tmp_path / "two") == measured(tmp_path / "single")
    assert len(list((tmp_path / "two" / "masks").rglob("*.png"))) == 5


def test_a_test_writes_labels_that_evaluate_and_analyze_read(
    tested: Path, trained: Path, masks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = sorted(path.relative_to(masks / "val" / "masks") for path in (masks / "val" / "masks").rglob("*.png"))
    written = {path.relative_to(tested / "masks"): path for path in (tested / "masks").rglob("*.png")}
    assert sorted(written) == names
    with PillowImage.open(written[names[0]]) as image:
        assert image.mode == "P" and image.size == (256, 256)
        assert np.asarray(image).max() < 11
    last = newest(trained / "run")["history"][-1]
    assert measured(tested) == {name: pytest.approx(last[name]) for name in measured(tested)}
    saved = tmp_path / "metrics.json"
    arguments = [str(tested / "config.yaml"), str(tested), "--per-class", "--json", str(saved)]
    assert evaluate.main(arguments) == 0
    assert json.loads(saved.read_text())["metrics"] == {k: pytest.approx(v) for k, v in measured(tested).items()}
    assert evaluate.main([str(tested / "config.yaml"), str(tested), str(tested / "masks")]) == 0
    assert "background" in capsys.readouterr().out
    assert analyze.main([str(tested), "--worst", "3"]) == 0
    page = (tested / "report" / "report.html").read_text()
    assert page.count("mean IoU") == 3 and page.count("data:image/jpeg") == 6 and "background" in page
    assert {path.name for path in (tested / "report").iterdir()} == {"report.html", "iou.png", "confusion.png"}


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        (evaluate, ["--backend", "pycocotools"], "--backend"),
        (evaluate, ["--iou-type", "segm"], "--iou-type"),
        (analyze, ["--score", "0.5"], "--score"),
    ],
)
def test_options_of_detection_are_refused(tested: Path, command: Any, arguments: list[str], message: str) -> None:
    given = [str(tested / "config.yaml"), str(tested)] if command is evaluate else [str(tested)]
    with pytest.raises(UserError, match=message):
        command.main([*given, *arguments])


def test_missing_and_surplus_results_are_user_errors(tested: Path, trained: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="5 of 5 predictions are missing"):
        evaluate.main([str(tested / "config.yaml"), str(tmp_path)])
    with pytest.raises(UserError, match="no folder"):
        evaluate.main([str(tested / "config.yaml"), str(tested / "metrics.json")])
    weights = str(trained / "run" / "last.pth")
    with pytest.raises(UserError, match="--submission"):
        test.main([str(trained / "deeplab.yaml"), "--weights", weights, "--submission", "name"])


@pytest.mark.parametrize(
    ("tree", "data", "packed"),
    [
        (voc_tree, {"kind": "voc_masks"}, [f"results/VOC2012/Segmentation/comp6_test_cls/2008_{x}.png" for x in "de"]),
        (
            cityscapes_tree,
            {"kind": "cityscapes", "crop": None},
            [f"lindau_{number:06d}_000019_labelIds.png" for number in range(2)],
        ),
    ],
    ids=["voc", "cityscapes"],
)
def test_a_test_packs_its_predictions_for_the_server(
    tree: Callable[[Path], None], data: dict[str, Any], packed: list[str], tmp_path: Path
) -> None:
    tree(tmp_path / "data")
    small = {"root": str(tmp_path / "data"), "resize": {"short_side": 32, "max_side": 64}, "workers": 0}
    path = tmp_path / "deeplab.yaml"
    path.write_text(yaml.safe_dump(SETTINGS | {"data": data | small}))
    assert run([str(path), "train.iterations=1", "train.warmup.kind=none", "--output", str(tmp_path / "run")]) == 0
    output = tmp_path / "test"
    weights = ["--weights", str(tmp_path / "run" / "last.pth")]
    assert test.main([str(path), *weights, "--output", str(output), "--submission", "ours"]) == 0
    (archive,) = (each for each in output.iterdir() if each.stem == "ours")
    shutil.unpack_archive(archive, tmp_path / "unpacked", "gztar" if archive.suffix == ".tgz" else "zip")
    files = sorted(each for each in (tmp_path / "unpacked").rglob("*") if each.is_file())
    assert [str(each.relative_to(tmp_path / "unpacked")) for each in files] == packed
    for own, sent in zip(sorted((output / "masks").rglob("*.png")), files):
        labels, values = (np.asarray(PillowImage.open(each)) for each in (own, sent))
        ids = np.array([0, *range(1, 21)]) if data["kind"] == "voc_masks" else np.array(TRAINED_IDS)
        assert np.array_equal(values, ids[labels])


def test_infer_draws_labels_with_a_legend(trained: Path, masks: Path, tmp_path: Path) -> None:
    weights, out = trained / "run" / "last.pth", tmp_path / "out"
    images = sorted((masks / "val" / "images").iterdir())[:2]
    assert infer.main([*map(str, images), "--weights", str(weights), "--output", str(out), "--sheet", "2"]) == 0
    records = json.loads((out / "results.json").read_text())
    assert [Path(record["image"]) for record in records] == images
    assert all(sum(record["shares"].values()) == pytest.approx(1, abs=1e-4) for record in records)
    with PillowImage.open(out / f"{images[0].stem}.png") as labels, PillowImage.open(images[0]) as image:
        assert labels.mode == "P" and labels.size == image.size
        with PillowImage.open(out / f"{images[0].stem}.jpg") as drawn:
            assert drawn.height == image.height and drawn.width > image.width, "the legend is on the right"
    result = dcn_det.load(weights)(images[0])
    assert result.labels.shape == result.scores.shape == (256, 256)
    assert not (result.above(2).labels != 255).any() and result.shares() == pytest.approx(
        records[0]["shares"], abs=1e-6
    )


def test_the_plain_loop_gives_the_engines_losses(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = [str(config), "data.flip=double", "train.iterations=4"]
    assert plain_train.main([*common, "--output", str(tmp_path / "plain.pth")]) == 0
    out = capsys.readouterr().out
    printed = [float(text) for text in re.findall(r"^iter .*  loss ([\d.]+)", out, re.MULTILINE)]
    assert run([*common, "--output", str(tmp_path / "run")]) == 0
    lines = list(map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()))
    assert printed == pytest.approx([line["loss"] for line in lines if line["kind"] == "train"], abs=2e-6)
    assert float(re.findall(r"^mIoU ([\d.]+)", out, re.MULTILINE)[0]) == pytest.approx(
        next(line["mIoU"] for line in lines if "mIoU" in line), abs=1e-4
    )


def test_it_learns(config: Path, tmp_path: Path) -> None:
    adam = "train.optimizer={kind: adamw, lr: 3e-3}"
    arguments = [str(config), adam, "train.iterations=60", "data.fraction=0.2", "train.best_metric=pixel_accuracy"]
    assert run([*arguments, "--output", str(tmp_path / "run")]) == 0
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    assert losses[-1] < 0.4 * losses[0]


def test_every_command_chooses_the_task_by_the_kind_of_the_model(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert config_command.main(["show", str(config)]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["model"]["bias_lr_mult"] == 2
    assert model_info.main([str(config)]) == 0
    assert run([str(config), "--dry-run"]) == 0
    assert re.search(r"deform +convolutions res5b", capsys.readouterr().out)
    based = tmp_path / "based.yaml"
    based.write_text(f"base: {config.name}\nseed: 3\n")
    assert dcn_det.train(based, tmp_path / "run", stop_at=1).iteration == 1
    for kind, message in (("deeplap", "did you mean 'deeplab'"), ("faster_rcn", "faster_rcnn")):
        with pytest.raises(UserError, match=message):
            run([str(config), f"model.kind={kind}"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.best_metric=AP", r"best_metric.*mIoU"),
        ("data.kind=coco", r"data\.kind: unknown choice .*sample_masks"),
        ("data.crop=[0, 3]", r"data\.crop"),
        ("model.bias_lr_mult=-1", "bias_lr_mult"),
        ("test.scales=[]", "scales"),
        ("expected=[{metric: AP50, value: 0.1, source: x}]", r"expected\.0\.metric"),
    ],
)
def test_wrong_settings(config: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run([str(config), override, "--dry-run"])


def test_weights_of_another_task_or_with_other_classes_are_refused(config: Path, trained: Path, tmp_path: Path) -> None:
    weights = ["--weights", str(trained / "run" / "last.pth")]
    with pytest.raises(UserError, match=r"model\.kind deeplab"):
        test.main([str(Path("configs/sample/rfcn.yaml").resolve()), *weights])
    names = ["background", *(f"digit {digit}" for digit in range(10))]
    with pytest.raises(UserError, match="trained on"):
        test.main([str(config), *weights, f"data.classes={json.dumps(names)}", "--output", str(tmp_path / "test")])


def test_half_precision_keeps_scores_and_weights_in_float32(config: Path, tmp_path: Path) -> None:
    result = dcn_det.train(
        config, tmp_path / "run", train={"iterations": 3, "precision": "bfloat16", "warmup": {"kind": "none"}}
    )
    assert 0 <= result.metrics["mIoU"] <= 1 and result.metrics["pixel_accuracy"] <= 1
    assert torch.load(tmp_path / "run" / "last.pth", weights_only=True)["model"][
        "head.score.weight"
    ].dtype.is_floating_point
