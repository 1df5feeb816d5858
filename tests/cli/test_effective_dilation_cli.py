"""``dcn-det effective-dilation`` from a checkpoint to table, JSON and plot."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dcn_det.cli.effective_dilation import main
from dcn_det.config import load_config
from dcn_det.errors import UserError
from dcn_det.visualize.effective_dilation import PLACES
from dcn_det.weights import checkpoint
from tests.cli.test_settings_of_weights import random_weights

LAYER = "backbone.layer4.1.conv2"
CELLS, GROUPS = 6 * 6, 2
"""Cells of res5 of an image of 96 x 96 pixels, and offset groups of the tiny config."""


def save_weights(path: Path, config: Path, taps: torch.Tensor) -> Path:
    """Writes a checkpoint whose deformable layer has constant offsets: (y, x) for each tap."""
    state = random_weights(load_config(config))
    state["model"][f"{LAYER}.offset.weight"].zero_()
    state["model"][f"{LAYER}.offset.bias"].copy_(taps.flatten().repeat(GROUPS))
    checkpoint.save(path, state)
    return path


def measure(config: Path, weights: Path, folder: Path, *more: str) -> dict[str, Any]:
    save = folder / "new" / "numbers.json"
    assert main([str(config), "--weights", str(weights), "--save", str(save), *more]) == 0
    result: dict[str, Any] = json.loads(save.read_text())
    return result


def test_a_layer_without_offsets_has_its_dilation(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = measure(tiny, save_weights(tmp_path / "w.pth", tiny, torch.zeros(9, 2)), tmp_path)
    (layer,) = numbers["layers"]
    assert (layer["name"], layer["dilation"], numbers["images"]) == (LAYER, 2, 4)
    assert sum(layer[place]["filters"] for place in PLACES) == 4 * CELLS * GROUPS
    assert layer["background"]["filters"] > 0 and layer["medium"]["filters"] > 0
    for place in PLACES:
        expected = (2.0, 0.0) if layer[place]["filters"] else (None, None)
        assert (layer[place]["mean"], layer[place]["std"]) == expected
    assert "paper" not in layer
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith(LAYER))
    assert line.split()[1] == "2" and "2.00 +- 0.00" in line and "nan" not in line


@pytest.mark.parametrize("options", [[], ["test.batch_size=3", "data.workers=1"], ["test.precision=bfloat16"]])
def test_stretched_filters_of_some_images(tiny: Path, tmp_path: Path, options: list[str]) -> None:
    taps = torch.tensor([[row - 1.0, 1.5 * (column - 1)] for row in range(3) for column in range(3)])
    weights = save_weights(tmp_path / "w.pth", tiny, taps)
    numbers = measure(tiny, weights, tmp_path, "--images", "2", *options)
    (layer,) = numbers["layers"]
    assert numbers["images"] == 2
    assert sum(layer[place]["filters"] for place in PLACES) == 2 * CELLS * GROUPS
    assert (layer["background"]["mean"], layer["background"]["std"]) == (3.25, 0)


def test_several_views_count_once(tiny: Path, tmp_path: Path) -> None:
    weights = save_weights(tmp_path / "w.pth", tiny, torch.zeros(9, 2))
    views = "test={flip: true, scales: [{short_side: 64, max_side: 80}], box_average: {}}"
    (layer,) = measure(tiny, weights, tmp_path, views)["layers"]
    assert sum(layer[place]["filters"] for place in PLACES) == 4 * CELLS * GROUPS


def test_images_have_the_size_of_the_test(tiny: Path, tmp_path: Path) -> None:
    weights = save_weights(tmp_path / "w.pth", tiny, torch.zeros(9, 2))
    (layer,) = measure(tiny, weights, tmp_path, "test.resize={short_side: 192, max_side: 192}")["layers"]
    assert sum(layer[place]["filters"] for place in PLACES) == 4 * 4 * CELLS * GROUPS


def test_the_plot_is_a_png_file(tiny: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    weights = save_weights(tmp_path / "w.pth", tiny, torch.zeros(9, 2))
    measure(tiny, weights, tmp_path, "--plot", str(tmp_path / "plot.png"))
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_measured_is_refused(tiny: Path, tmp_path: Path, sample_root: Path) -> None:
    infinite = save_weights(tmp_path / "inf.pth", tiny, torch.full((9, 2), torch.inf))
    with pytest.raises(UserError, match=LAYER):
        main([str(tiny), "--weights", str(infinite), "--save", str(tmp_path / "x.json")])
    assert not (tmp_path / "x.json").exists()

    weights = save_weights(tmp_path / "w.pth", tiny, torch.zeros(9, 2))
    document = json.loads((sample_root / "annotations" / "val.json").read_text())
    del document["annotations"]
    (tmp_path / "info.json").write_text(json.dumps(document))
    unannotated = f"data.test={{images: {sample_root / 'val'}, annotations: {tmp_path / 'info.json'}}}"
    with pytest.raises(UserError, match=r"info\.json"):
        main([str(tiny), "--weights", str(weights), unannotated])
    with pytest.raises(UserError, match="--save"):
        main([str(tiny), "--weights", str(weights), "--save", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        main([str(tiny), "--weights", str(weights), "--plot", "x.jpg"])
    assert stop.value.code == 2

    plain = random_weights(load_config(tiny, "model.backbone.deform.blocks=[]"))
    checkpoint.save(tmp_path / "plain.pth", plain)
    with pytest.raises(UserError, match=r"model\.backbone\.deform\.blocks"):
        main([str(tiny), "--weights", str(tmp_path / "plain.pth"), "model.backbone.deform.blocks=[]"])
