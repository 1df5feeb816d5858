"""Starting from a checkpoint whose classes are others: rows of the same class are copied, nothing else changes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dcn_det.cli import train
from dcn_det.config import RunConfig, to_plain
from dcn_det.config.tasks import any_from_plain
from dcn_det.models.build import build_model
from dcn_det.models.deeplab import DeepLab
from dcn_det.models.detector import TwoStageDetector
from dcn_det.models.one_stage import OneStageDetector
from dcn_det.structures import Category, MaskBatch
from dcn_det.weights import checkpoint
from dcn_det.weights.start import start_from
from tests.messages import refused, says, warned
from tests.models.helpers import batch

THEIRS, OURS = ("cat", "dog", "bird"), ("bird", "cow", "cat")
BACKBONE = {"kind": "resnet18", "width": 4, "stem_width": 4, "norm": "bn", "frozen_stages": 0, "weights": "none"}
RPN = {"channels": 4, "anchors": {"scales": [2]}}
HEAD = {"channels": 4, "pooled_size": 2, "pooling": "deformable"}
MODELS: dict[str, dict[str, Any]] = {
    "faster_rcnn": {"rpn": RPN, "head": HEAD | {"hidden": 4}},
    "fpn": {
        "kind": "faster_rcnn",
        "fpn": True,
        "backbone": BACKBONE | {"res5_stride": 2, "res5_dilation": 1},
        "rpn": RPN,
        "head": HEAD | {"hidden": 4},
    },
    "rfcn": {"rpn": RPN, "head": HEAD | {"class_agnostic": False}},
    "class_aware_rpn": {"rpn": {"channels": 4, "anchors": {"scales": [2]}}},
    "deeplab": {"channels": 4},
}
# Rows of each output layer: (first row of a class among ours, first row of the same class among theirs, rows).
# Background comes first where there is one; a class has 4 rows of box deltas, 2 x 2 bins, 2 offsets or 3 anchors.
ROWS: dict[str, dict[str, list[tuple[int, int, int]]]] = {
    "faster_rcnn": {
        "head.cls_score": [(0, 0, 1), (1, 3, 1), (3, 1, 1)],
        "head.bbox_pred": [(0, 0, 4), (4, 12, 4), (12, 4, 4)],
    },
    "rfcn": {
        "head.cls_score": [(0, 0, 4), (4, 12, 4), (12, 4, 4)],
        "head.bbox_pred": [(0, 0, 16), (16, 48, 16), (48, 16, 16)],
        "head.cls_offset": [(0, 0, 8), (8, 24, 8), (24, 8, 8)],
    },
    "class_aware_rpn": {"rpn.cls_score": [(0, 0, 3), (3, 9, 3), (9, 3, 3)]},
    "deeplab": {"head.score": [(0, 2, 1), (2, 0, 1)]},
}
ROWS["fpn"] = ROWS["faster_rcnn"]


def config_of(name: str, **changed: Any) -> RunConfig:
    data = {"data": {"kind": "masks", "root": ".", "classes": ["any"]}} if name == "deeplab" else {}
    model = {"kind": name, "backbone": BACKBONE, **MODELS[name], **changed}
    return any_from_plain({"model": model, **data})


def model_of(config: RunConfig, classes: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = build_model(config, classes)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    assert isinstance(model, nn.Module)
    return model


def state_of(config: RunConfig, classes: tuple[str, ...] = THEIRS, seed: int = 1) -> dict[str, Any]:
    """What a checkpoint holds."""
    categories = [{"id": 7 * number, "name": name} for number, name in enumerate(classes, start=1)]
    model = model_of(config, len(classes), seed)
    return {"config": to_plain(config), "categories": categories, "model": model.state_dict()}


def categories(names: tuple[str, ...]) -> list[Category]:
    return [Category(number, name) for number, name in enumerate(names)]


def start(config: RunConfig, state: dict[str, Any], classes: tuple[str, ...] = OURS) -> tuple[nn.Module, list[str]]:
    model = model_of(config, len(classes), seed=2)
    return model, start_from(model, categories(classes), config, state, Path("w.pth"))


def by_class(model: nn.Module) -> list[Tensor]:
    """Raw outputs for an image, with the classes along dimension 1: background first, if there is any."""
    images = batch((64, 64))
    model.eval()
    with torch.no_grad():
        if isinstance(model, TwoStageDetector):
            boxes = [torch.tensor([[4.0, 8.0, 40.0, 50.0], [0.0, 0.0, 64.0, 64.0]])]
            logits, deltas = model.head(model.extract(images).head, boxes)
            return [logits, deltas]
        if isinstance(model, OneStageDetector):
            return [model.extract(images).logits.unflatten(1, (-1, 3))]
        assert isinstance(model, DeepLab)
        return [model.scores(MaskBatch(images.images, images.infos))]


@pytest.mark.parametrize("name", MODELS)
def test_rows_of_the_same_class_are_copied(name: str) -> None:
    config = config_of(name)
    state = state_of(config)
    fresh = model_of(config, len(OURS), seed=2).state_dict()
    model, _ = start(config, state)
    own, theirs = model.state_dict(), state["model"]
    seen = set()
    for layer, rows in ROWS[name].items():
        for kind in ("weight", "bias"):
            value = own[f"{layer}.{kind}"]
            left = torch.ones(len(value), dtype=torch.bool)
            for ours, other, count in rows:
                assert torch.equal(value[ours : ours + count], theirs[f"{layer}.{kind}"][other : other + count])
                left[ours : ours + count] = False
            assert left.any() and torch.equal(value[left], fresh[f"{layer}.{kind}"][left]), "a new class starts anew"
            seen.add(f"{layer}.{kind}")
    assert all(torch.equal(own[key], theirs[key]) for key in own.keys() - seen if not key.endswith("tracked"))


@pytest.mark.parametrize("name", MODELS)
def test_outputs_of_the_same_class_are_equal(name: str) -> None:
    config = config_of(name)
    state = state_of(config)
    original = build_model(config, len(THEIRS))
    original.load_state_dict(state["model"])
    model, _ = start(config, state)
    leading = 0 if name == "deeplab" else 1
    for ours, theirs in zip(by_class(model), by_class(original), strict=True):
        for label in ("bird", "cat"):
            mine, other = leading + OURS.index(label), leading + THEIRS.index(label)
            assert torch.allclose(ours[:, mine], theirs[:, other], atol=1e-5)
        assert not torch.allclose(ours[:, leading + 1], theirs[:, leading + 1], atol=1e-2)


@pytest.mark.parametrize("name", MODELS)
def test_the_same_classes_copy_everything(name: str) -> None:
    config = config_of(name)
    state = state_of(config)
    model, table = start(config, state, THEIRS)
    copied = model.state_dict()
    assert all(torch.equal(copied[key], value) for key, value in state["model"].items())
    assert {line.split()[-1] for line in table} == {"copied"}


def test_the_table_tells_what_happened_to_each_layer() -> None:
    config = config_of("rfcn")
    _, table = start(config, state_of(config))
    text = "\n".join(table)
    assert says(text, "head.reduce", "copied")
    assert says(text, "head.cls_score", "background", "2 of 3", "bird", "cat", "new", "cow")
    assert says(text, "backbone", "layers", "copied")
    assert len(table) < 15


def test_a_deformable_network_starts_from_a_plain_one() -> None:
    deform = {"backbone": BACKBONE | {"deform": {"blocks": ["res5b"], "offset_groups": 2}}}
    plain = config_of("faster_rcnn", head=HEAD | {"hidden": 4, "pooling": "bilinear"})
    config = config_of("faster_rcnn", **deform)
    torch.manual_seed(2)
    model = build_model(config, len(THEIRS))
    table = start_from(model, categories(THEIRS), config, state := state_of(plain), Path("w.pth"))
    assert says("\n".join(table), "head.offset", "new")
    original = build_model(plain, len(THEIRS))
    original.load_state_dict(state["model"])
    for ours, theirs in zip(by_class(model), by_class(original)):
        assert torch.allclose(ours, theirs, atol=1e-5), "offsets start at 0"


@pytest.mark.parametrize(
    ("changed", "fix"),
    [
        ({"backbone": BACKBONE | {"width": 8}}, "model.backbone.width=4"),
        ({"backbone": BACKBONE | {"norm": "gn"}}, "model.backbone.norm=bn"),
        ({"head": HEAD | {"hidden": 8}}, "model.head.hidden=4"),
        ({"head": HEAD | {"hidden": 4, "class_agnostic": True}}, "model.head.class_agnostic=false"),
        ({"head": HEAD | {"hidden": 4, "pooling": "max"}}, "model.head.pooling=deformable"),
    ],
)
def test_another_network_is_refused_with_the_setting_to_change(changed: dict[str, Any], fix: str) -> None:
    state, config = state_of(config_of("faster_rcnn")), config_of("faster_rcnn", **changed)
    model = model_of(config, len(OURS), seed=2)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with refused("model.weights", "w.pth", fix) as caught:
        start_from(model, categories(OURS), config, state, Path("w.pth"))
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_numbers_that_are_not_finite_are_refused() -> None:
    config = config_of("rfcn")
    state = state_of(config)
    state["model"]["head.cls_score.bias"][13] = float("nan")
    with refused("w.pth", "non-finite", "head.cls_score.bias"):
        start(config, state)


def test_training_starts_from_a_file(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert train.main([str(tiny), "data.classes=['3', '7', '8']", "--output", str(first)]) == 0
    before = checkpoint.load(first / "last.pth")["model"]
    # A learning rate of almost 0 leaves the weights as they are copied. Anchors belong to the weights.
    other = ["data.classes=['8', '5', '3']", "model.rpn.anchors.scales=[3,5]", "train.optimizer.lr=1e-30"]
    start = f"model.weights={first / 'last.pth'}"
    with warned("model.rpn.anchors.scales", "[2.0,4.0]"):
        assert train.main([str(tiny), *other, start, "--output", str(second)]) == 0
    after = checkpoint.load(second / "last.pth")
    assert after["config"]["model"]["rpn"]["anchors"]["scales"] == [2, 4]
    weights = after["model"]
    assert torch.equal(weights["backbone.conv1.weight"], before["backbone.conv1.weight"])
    assert torch.equal(weights["head.cls_score.weight"][[0, 1, 3]], before["head.cls_score.weight"][[0, 3, 1]])
    assert says((second / "log.txt").read_text(), "head.cls_score", "2 of 3", "8", "3", "new", "5")
    with refused("model.backbone.kind", "resnet18", "model.backbone.kind=resnet18"):
        train.main([str(tiny), start, "model.backbone.kind=resnet34", "--output", str(tmp_path / "third")])
    with refused("missing.pth"):
        train.main([str(tiny), "model.weights=missing.pth", "--output", str(tmp_path / "third")])
    assert not (tmp_path / "third").exists()
