"""The configs of the embedded data set: every detector, plain and deformable, which differ in nothing else."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dcn_det.config import load_any, load_config, to_plain
from dcn_det.models.build import build_detector
from dcn_det.ops import DeformConv2d

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "sample"
PLAIN = ("class_aware_rpn", "faster_rcnn", "faster_rcnn_air", "rfcn", "rfcn_air")


def test_every_detector_is_there_plain_and_deformable() -> None:
    names = {path.stem for path in FOLDER.glob("*.yaml")}
    models = (*PLAIN, "deeplab")
    assert names == {*models, *(f"{name}_dcn" for name in models), "faster_rcnn_dcn_ms"}


def test_segmentation_twins_differ_in_deformation_alone() -> None:
    parts: list[dict[str, Any]] = [to_plain(load_any(FOLDER / f"deeplab{suffix}.yaml")) for suffix in ("", "_dcn")]
    blocks = [part["model"]["backbone"].pop("deform")["blocks"] for part in parts]
    assert blocks == [[], ["res5a", "res5b"]]
    for part in parts:
        del part["name"], part["expected"]
    assert parts[0] == parts[1]


@pytest.mark.parametrize("name", PLAIN)
def test_twins_differ_in_deformation_alone(name: str) -> None:
    plain, deformable = (load_config(FOLDER / f"{name}{suffix}.yaml") for suffix in ("", "_dcn"))
    assert plain.model.kind == name.removesuffix("_air")
    assert (plain.model.backbone.kind == "aligned_inception_resnet") == name.endswith("_air")
    backbones: list[Any] = [plain.model.backbone, deformable.model.backbone]
    assert [bool(each.deform.blocks) for each in backbones] == [False, True]
    pooling = {"class_aware_rpn": "none", "faster_rcnn": "max", "rfcn": "average"}[plain.model.kind]
    assert plain.model.pooling == pooling
    assert deformable.model.pooling == ("none" if pooling == "none" else "deformable")
    parts: list[dict[str, Any]] = [to_plain(config) for config in (plain, deformable)]
    for part in parts:
        for key in ("name", "expected"):
            part.pop(key)
        part["model"]["backbone"].pop("deform")
        part["model"].get("head", {}).pop("pooling", None)
    assert parts[0] == parts[1]


@pytest.mark.parametrize("name", PLAIN)
def test_every_detector_learns_from_the_same_images(name: str) -> None:
    first, other = (load_config(FOLDER / f"{each}.yaml") for each in ("faster_rcnn", name))
    assert first.data == other.data and first.train == other.train and first.test == other.test
    assert first.seed == other.seed


@pytest.mark.parametrize("name", PLAIN)
def test_deformable_layers_are_built(name: str) -> None:
    config = load_config(FOLDER / f"{name}_dcn.yaml")
    with torch.device("meta"):
        model = build_detector(config, 10)
    layers = [layer for layer in model.modules() if isinstance(layer, DeformConv2d)]
    # The last 3x3 of two basic blocks, or the three of one inception block.
    assert len(layers) == (3 if name.endswith("_air") else 2)
    assert {layer.offset_groups for layer in layers} == {4}
