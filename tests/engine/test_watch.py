"""Offsets in the logs of a run."""

import json
import math
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from dcn_det.cli import train
from dcn_det.config import load_config
from dcn_det.data.build import build_dataset
from dcn_det.engine.logging import RunLog
from dcn_det.engine.watch import OffsetMeter, log_offsets
from dcn_det.inference.build import build_predictor
from dcn_det.models.build import build_detector
from dcn_det.ops import DeformConv2d


def test_offsets_are_logged_for_each_deformable_layer(tiny: Path, tmp_path: Path) -> None:
    assert train.main([str(tiny), "train.iterations=3", "--output", str(tmp_path / "run")]) == 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    records = [record for record in map(json.loads, lines) if record["kind"] == "train"]
    assert records[0]["offset/backbone.layer4.1.conv2"] == records[0]["offset/head"] == 0, "offsets start at zero"
    assert records[-1]["offset/backbone.layer4.1.conv2"] > 0


@pytest.mark.parametrize(
    ("settings", "layers"),
    [
        ((), {"backbone.layer4.1.conv2", "head"}),
        (("model.backbone.deform.kind=v2", "train.precision=bfloat16"), {"backbone.layer4.1.conv2", "head"}),
        (("model.backbone.deform.blocks=[]", "model.head.pooling=align"), set()),
    ],
)
def test_offsets_are_watched_at_evaluations(
    tiny: Path, tmp_path: Path, settings: tuple[str, ...], layers: set[str]
) -> None:
    arguments = [str(tiny), "train.iterations=2", "train.eval_every=1", *settings]
    assert train.main([*arguments, "--output", str(tmp_path / "run")]) == 0
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"), {"histograms": 0, "images": 0})
    events.Reload()
    tags = events.Tags()
    assert set(tags["histograms"]) == {f"offsets/{name}" for name in layers}
    for name in tags["histograms"]:
        first, second = (event.histogram_value for event in events.Histograms(name))
        assert first.num == second.num > 0 and second.sum_squares > 0
    pictures = [tag for tag in tags["images"] if tag.startswith("sampling/")]
    assert len(pictures) == (4 if layers else 0)
    assert all(len(events.Images(tag)) == 2 for tag in pictures)


def test_offsets_that_are_not_finite_do_not_end_a_run(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config(tiny)
    dataset = build_dataset(config.data, "test", None)
    model = build_detector(config, len(dataset.categories))
    model.get_parameter("backbone.layer4.1.conv2.offset.bias").data.fill_(math.nan)
    log = RunLog(tmp_path)
    log_offsets(log, 1, build_predictor(model, dataset.categories, config), dataset)
    log.close()
    assert capsys.readouterr().out.count("not finite") == 4


def test_masks_do_not_count_as_offsets() -> None:
    layer = DeformConv2d(2, 2, 3, padding=1, modulated=True)
    assert layer.offset.bias is not None
    with torch.no_grad():
        layer.offset.bias[:18] = 0.5
        layer.offset.bias[18:] = 100
    meter = OffsetMeter(nn.Sequential(layer))
    with meter.measuring():
        nn.Sequential(layer)(torch.zeros(1, 2, 5, 5))
    assert meter.magnitudes() == {"0": 0.5}
