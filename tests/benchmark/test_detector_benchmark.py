import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from dcn_det.benchmark import detector, model_memory
from dcn_det.benchmark.detector import main, ours, read_configs, settle
from dcn_det.config import from_plain, load_config
from dcn_det.engine import detection
from dcn_det.engine.detection import DetectionTask
from dcn_det.errors import UserError
from dcn_det.models.build import build_detector
from dcn_det.models.info import count_parameters
from dcn_det.models.norm import FrozenBatchNorm2d

noise = DetectionTask.random_batch
QUICK = ["--device", "cpu", "--size", "64", "96", "--rounds", "1", "--seconds", "1e-9"]


@pytest.fixture
def plain(tmp_path: Path, tiny_settings: dict) -> Path:
    """The tiny config without deformable layers."""
    model = tiny_settings["model"]
    backbone = {key: value for key, value in model["backbone"].items() if key != "deform"}
    settings = tiny_settings | {"model": model | {"backbone": backbone, "head": model["head"] | {"pooling": "max"}}}
    path = tmp_path / "plain.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def test_detectors_are_measured_side_by_side(
    plain: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = tmp_path / "numbers.json"
    assert main([str(plain), str(tiny), "train.precision=bfloat16", *QUICK, "--batch", "2", "--save", str(saved)]) == 0
    text = capsys.readouterr().out
    assert "plain: faster_rcnn, plain" in text and "tiny: faster_rcnn, deformable" in text
    assert "training: tiny / plain" in text and "testing: tiny / plain" in text
    record = json.loads(saved.read_text())
    assert record["batch"] == 2 and record["size"] == [64, 96] and record["precision"]["tiny"] == "bfloat16"
    assert record["test_precision"]["tiny"] == "float32"
    for run in record["runs"].values():
        assert run["training"]["images_per_second"] == pytest.approx(2e3 / run["training"]["milliseconds"])
        assert run["testing"]["images_per_second"] == pytest.approx(1e3 / run["testing"]["milliseconds"])
    assert record["runs"]["plain"]["testing"]["ratio"] == 1


def test_stages_and_classes(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = tmp_path / "numbers.json"
    assert main([str(tiny), *QUICK, "--stages", "network", "testing", "--classes", "3", "--save", str(saved)]) == 0
    assert "training, " not in capsys.readouterr().out
    run = json.loads(saved.read_text())["runs"]["tiny"]
    assert run["network"]["milliseconds"] > 0 and run["testing"]["milliseconds"] > 0 and "training" not in run
    model = build_detector(load_config(tiny), 3)
    assert run["parameters"] == {name: count_parameters(getattr(model, name)) for name in ("backbone", "rpn", "head")}


@pytest.mark.parametrize(("limit", "code"), [(0, 1), (1e9, 0)])
def test_check_exits_with_one_when_a_bar_is_missed(
    plain: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, limit: float, code: int
) -> None:
    monkeypatch.setattr(detector, "LIMIT", limit)
    assert main([str(plain), str(tiny), *QUICK, "--check"]) == code


@pytest.mark.slow
def test_torchvisions_detector_takes_part(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tiny), *QUICK, "--torchvision"]) == 0
    assert capsys.readouterr().out.count(detector.TORCHVISION) == 3


def test_a_settled_network_neither_explodes_nor_samples_the_grid() -> None:
    deform = {"blocks": ["res5a", "res5b", "res5c"], "offset_groups": 1}
    backbone = {"kind": "resnet50", "width": 8, "stem_width": 8, "weights": "none", "deform": deform}
    config = from_plain({"model": {"kind": "rfcn", "backbone": backbone, "head": {"pooling": "deformable"}}})
    torch.manual_seed(0)
    model = build_detector(config, detector.CLASSES)
    batch = noise(1, 64, 96, 0, detector.CLASSES)
    settle(model, batch)
    seen: dict[str, torch.Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, FrozenBatchNorm2d) or (isinstance(module, nn.Conv2d) and "offset" in name):
            module.register_forward_hook(lambda module, inputs, output, name=name: seen.update({name: output.clone()}))
    losses = model.train()(batch)
    assert all(loss.isfinite() for loss in losses.values())
    for name, output in seen.items():
        expected = detector.SPREAD[name.partition(".")[0]] if "offset" in name else 1.0
        assert output.detach().std().item() == pytest.approx(expected, rel=0.1), name
    assert {"backbone.layer4.2.conv2.offset", "head.cls_offset", "head.bbox_offset"} <= seen.keys()


def test_training_leaves_the_weights_alone(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that all turns do the same work."""
    models: list[nn.Module] = []

    def build(*args: Any) -> nn.Module:
        models.append(build_detector(*args))
        return models[0]

    monkeypatch.setattr(detector, "build_model", build)
    config = read_configs([str(tiny)], None)["tiny"]
    assert (config.train.precision, config.test.precision) == ("float32", "float32")
    both = read_configs([str(tiny)], "bfloat16")["tiny"]
    assert (both.train.precision, both.test.precision) == ("bfloat16", "bfloat16")
    contestant = ours(
        config, torch.device("cpu"), noise(2, 64, 96, 0, detector.CLASSES), noise(1, 64, 96, 0, detector.CLASSES)
    )
    before = [parameter.clone() for parameter in models[0].parameters()]
    contestant.training()
    assert all(map(torch.equal, models[0].parameters(), before))
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in models[0].parameters())


def test_candidates_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detection, "CANDIDATES", 10)
    values = torch.rand(50)
    assert detection.limit_candidates(lambda threshold: values[values > threshold]) == 10
    assert detection.limit_candidates(lambda threshold: values[:5]) == 5
    for scores in (lambda threshold: torch.empty(0), lambda threshold: torch.tensor([float("nan")])):
        with pytest.raises(UserError, match="random weights"):
            detection.limit_candidates(scores)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.yaml", "--size", "100", "64"], "--size is 100 64"),
        (["train.clip_norm=1"], "no config given"),
    ],
)
def test_mistakes(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        main(arguments)


@pytest.mark.parametrize("arguments", [["--batch", "0"], ["--rounds", "0"], ["--seconds", "nan"]])
def test_counts_out_of_range(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["a.yaml", *arguments])
    assert stop.value.code == 2
    assert re.search(rf"argument {arguments[0]}: '{arguments[1]}', expected", capsys.readouterr().err)


def test_two_configs_of_one_name(tiny: Path) -> None:
    with pytest.raises(UserError, match="same name: tiny, tiny"):
        main([str(tiny), str(tiny), *QUICK])


def segmenter(folder: Path) -> Path:
    """Writes the config of a narrow segmentation network."""
    backbone = {"kind": "resnet18", "width": 8, "stem_width": 8, "norm": "bn", "frozen_stages": 0, "weights": "none"}
    model = {"kind": "deeplab", "channels": 8, "backbone": backbone | {"deform": {"blocks": ["res5a"]}}}
    path = folder / "masks.yaml"
    path.write_text(yaml.safe_dump({"model": model, "data": {"kind": "cityscapes"}, "device": "cpu"}))
    return path


def test_segmentation_networks_take_part(tmp_path: Path) -> None:
    saved = tmp_path / "numbers.json"
    stages = ["--stages", "training", "network", "testing", "--classes", "19"]
    assert main([str(segmenter(tmp_path)), *QUICK, *stages, "--save", str(saved)]) == 0
    run = json.loads(saved.read_text())["runs"]["masks"]
    assert run["parameters"].keys() == {"backbone", "head"}
    assert all(run[stage]["milliseconds"] > 0 for stage in ("training", "network", "testing"))


def test_memory_of_training_and_testing(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = tmp_path / "memory.json"
    sizes = ["--train-size", "64", "96", "--test-size", "96", "128", "--save", str(saved)]
    assert model_memory.main([str(segmenter(tmp_path)), str(tiny), *sizes, "train.clip_norm=1"]) == 0
    runs = json.loads(saved.read_text())["runs"]
    assert [(run["config"], run["stage"], run["size"]) for run in runs] == [
        (name, stage, size)
        for name in ("masks", "tiny")
        for stage, size in (("training", [64, 96]), ("testing", [96, 128]))
    ]
    assert all(run["gib"] > run["weights_gib"] > 0 for run in runs)
    assert capsys.readouterr().out.count("GiB (cpu") == 4
    with pytest.raises(UserError, match=r"train\.clip_norm"):
        model_memory.main([str(tiny), "train.clip_norm=-1", "--stages", "testing"])
