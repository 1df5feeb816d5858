"""The configs of FOD-A: twins differ in deformation alone, and each of them trains on the photographs."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dcn_det.config import load_config, to_plain
from dcn_det.data.build import build_dataset
from dcn_det.engine.detection import DetectionTask
from dcn_det.engine.session import Session
from dcn_det.models.build import build_detector
from dcn_det.ops import DeformConv2d

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FOLDER = CONFIGS / "fod"
VARIANTS = {
    "faster_rcnn": ("dconv", "dpool", "dcn"),
    "rfcn": ("dconv", "dpool", "dcn"),
    "class_aware_rpn": ("dconv",),
    "faster_rcnn_fpn": ("dcn",),
}
BACKBONES = ("", "_r50", "_r101")
NAMES = sorted(path.stem for path in FOLDER.glob("*"))


def named(kind: str, backbone: str, variant: str = "") -> str:
    stem, fpn = kind.removesuffix("_fpn"), "_fpn" if kind.endswith("_fpn") else ""
    return f"{stem}{backbone}{fpn}{variant and '_'}{variant}"


TWINS = [
    (named(kind, backbone), named(kind, backbone, variant))
    for kind, variants in VARIANTS.items()
    for backbone in BACKBONES
    for variant in variants
]


def test_every_row_is_there_and_nothing_else() -> None:
    assert set(NAMES) == {name for twins in TWINS for name in twins}


@pytest.mark.parametrize(("plain", "deformable"), TWINS)
def test_twins_differ_in_deformation_alone(plain: str, deformable: str) -> None:
    variant = deformable.rpartition("_")[2]
    configs = [load_config(FOLDER / f"{name}.yaml") for name in (plain, deformable)]
    backbones: list[Any] = [config.model.backbone for config in configs]
    assert [bool(each.deform.blocks) for each in backbones] == [False, variant != "dpool"]
    pooling = {"class_aware_rpn": "none", "faster_rcnn": "max", "rfcn": "average"}[configs[0].model.kind]
    assert configs[0].model.pooling == pooling
    assert configs[1].model.pooling == ("deformable" if variant in ("dpool", "dcn") else pooling)
    parts: list[dict[str, Any]] = [to_plain(config) for config in configs]
    for part in parts:
        part.pop("name")
        part["model"]["backbone"].pop("deform")
        part["model"].get("head", {}).pop("pooling", None)
    assert parts[0] == parts[1]


@pytest.mark.parametrize("name", NAMES)
def test_a_config_holds_only_its_differences_and_expects_nothing(name: str) -> None:
    text = (FOLDER / f"{name}.yaml").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert text.startswith("# ") and lines[0].startswith("base:")
    limit = 20 if name in ("faster_rcnn", "class_aware_rpn") else 7
    assert len(lines) <= limit and load_config(FOLDER / f"{name}.yaml").expected == ()


@pytest.mark.parametrize("backbone", BACKBONES)
def test_all_detectors_of_a_backbone_have_the_same_data_and_budget(backbone: str) -> None:
    first = load_config(FOLDER / f"faster_rcnn{backbone}.yaml")
    for kind in VARIANTS:
        other = load_config(FOLDER / f"{named(kind, backbone)}.yaml")
        assert other.data == first.data and other.seed == first.seed
        if not backbone:
            assert other.train == first.train and other.model.backbone.weights == "none"
        else:
            assert (other.train.epochs, other.model.backbone.weights) == (first.train.epochs, "torchvision")
            assert other.model.backbone.kind == backbone.replace("_r", "resnet")


@pytest.mark.parametrize("name", NAMES)
def test_deformable_layers_are_built(name: str) -> None:
    config: Any = load_config(FOLDER / f"{name}.yaml")
    with torch.device("meta"):
        model = build_detector(config, 31)
    layers = [layer for layer in model.modules() if isinstance(layer, DeformConv2d)]
    assert len(layers) == len(config.model.backbone.deform.blocks)
    assert {layer.offset_groups for layer in layers} <= {4}


def test_settings_are_chosen_on_images_that_are_not_tested() -> None:
    overlay = f"overlay={CONFIGS / 'base' / 'fod_validation.yaml'}"
    config: Any = load_config(FOLDER / "rfcn_dcn.yaml", overlay)
    assert config.data.train.sets == config.data.test.sets == ("ImageSets/Main/trainval.txt",)
    assert config.data.train.part[1] == config.data.test.part[0] and config.data.test.without == ()
    assert config.data.test_title != load_config(FOLDER / "rfcn_dcn.yaml").data.test_title


@pytest.fixture(scope="module")
def root(shared: Path) -> str:
    folder = shared / "data" / "fod" / "FOD"
    if not folder.is_dir():
        pytest.skip(f"'{folder}' not found")
    return f"data.root={folder}"


@pytest.mark.shared
def test_the_set_as_published_is_read(root: str) -> None:
    config = load_config(FOLDER / "faster_rcnn.yaml", root)
    train, test = (build_dataset(config.data, split).index for split in ("train", "test"))
    assert (len(train), len(test)) == (4219, 1053)  # two names twice, and three in both splits
    assert set(train.labels.tolist()) == set(range(31)), "every class has objects"
    assert len(train.labels) + len(test.labels) == 5377 and "other classes" not in train.report
    config = load_config(FOLDER / "faster_rcnn.yaml", root, f"overlay={CONFIGS / 'base' / 'fod_validation.yaml'}")
    ids = [set(build_dataset(config.data, split).index.image_ids.tolist()) for split in ("train", "test")]
    assert not ids[0] & ids[1] and ids[0] | ids[1] == set(train.image_ids.tolist())


SMALL = [
    "model.backbone.width=8", "model.backbone.stem_width=8", "model.backbone.norm=gn", "model.backbone.frozen_stages=0",
    "model.backbone.weights=none", "model.rpn.channels=16", "model.rpn.pre_nms=200",
    "data.resize={short_side: 128, max_side: 128}", "data.workers=0", "data.fraction=0.02", "train.batch_size=2",
    "train.warmup.kind=none", "device=cpu",
]  # fmt: skip


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_two_training_steps(name: str, root: str) -> None:
    overrides = [*SMALL, root]
    if "class_aware_rpn" not in name:
        overrides += ["model.head.channels=16", "model.rpn.post_nms=50"]
    if "faster_rcnn" in name:
        overrides += ["model.head.hidden=32"]
    session = Session(DetectionTask(load_config(FOLDER / f"{name}.yaml", *overrides)))
    before = [parameter.detach().clone() for parameter in session.model.parameters()]
    batches = iter(session.train_batches(0, 2, 1))
    for _ in range(2):
        total = sum(session.model.train()(next(batches)).values())
        assert total.isfinite()
        session.optimizer.zero_grad()
        total.backward()
        session.optimizer.step()
    after = list(session.model.parameters())
    assert all(each.isfinite().all() for each in after)
    assert any(not torch.equal(old, new) for old, new in zip(before, after))
