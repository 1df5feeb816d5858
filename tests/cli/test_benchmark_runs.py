import json
import re
from pathlib import Path

import pytest
from torch import nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn

from dcn_det.benchmark import data, train
from dcn_det.cli import benchmark


def test_loading_is_measured_by_stage(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["data", str(tiny), "--images", "6", "--save", str(tmp_path / "x.json")]) == 0
    text = capsys.readouterr().out
    for stage in ("bare cv2", "read", "decode", "resize", "flip", "example", "loader, 0 workers"):
        assert re.search(rf"{stage}.* [\d.]+ images/s", text), stage
    record = json.loads((tmp_path / "x.json").read_text())
    assert record["milliseconds"]["decode"] > 0 and record["ratio"] > 0.5
    verdict = "pass" if record["ratio"] <= data.LIMIT else "MISS"
    assert re.search(rf"loading: .* {record['ratio']:.2f} .*{verdict}", text)


def test_loading_beyond_its_bar_is_told(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["data", str(tiny), "--images", "2"]
    monkeypatch.setattr(data, "ROUNDS", 1)
    monkeypatch.setattr(data, "LIMIT", 0)
    assert benchmark.main(arguments) == 0 and benchmark.main([*arguments, "--check"]) == 1
    monkeypatch.setattr(data, "LIMIT", 1e9)
    assert benchmark.main([*arguments, "--check"]) == 0
    assert re.findall("pass|MISS", capsys.readouterr().out) == ["MISS", "MISS", "pass"]


def test_torchvisions_detector_is_frozen_where_ours_is() -> None:
    """Otherwise the comparison would favor our detector."""
    theirs = train.TorchvisionFasterRCNN(3, 64, 64).network
    body = theirs.backbone.body
    assert not any(p.requires_grad for part in (body.conv1, body.layer1) for p in part.parameters())
    assert all(p.requires_grad for part in (body.layer2, body.layer4) for p in part.parameters())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in theirs.modules())
    reference = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=4)
    normalized = (".bn1.", ".bn2.", ".bn3.", ".downsample.1.")
    expected = {name for name, _ in reference.named_parameters() if not any(part in name for part in normalized)}
    assert {name for name, _ in theirs.named_parameters()} == expected


def test_training_is_measured_by_phase(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", str(tiny), "train.accumulate=2", "--steps", "2", "--warmup", "1"]
    assert benchmark.main([*arguments, "--save", str(tmp_path / "x.json")]) == 0
    assert re.search(
        r"tiny: [\d.]+ images/s  data \d+%  forward \d+%  backward \d+%  optimizer \d+%", capsys.readouterr().out
    )
    run = json.loads((tmp_path / "x.json").read_text())["runs"]["tiny"]
    assert sum(run[phase] for phase in ("data", "forward", "backward", "optimizer")) == pytest.approx(1)
    with pytest.raises(SystemExit) as stop:
        benchmark.main(["train", str(tiny), "--steps", "0"])
    assert stop.value.code == 2
