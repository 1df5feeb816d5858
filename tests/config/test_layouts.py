"""The layout of a backbone follows from its weights."""

import inspect
from pathlib import Path

import pytest
import yaml

from dcn_det.config import Config, load_config
from dcn_det.config.layouts import ALIGNED, CAFFE, CONVERTED, TORCHVISION, layout_of, of_backbone
from dcn_det.config.model import BackboneConfig, PreprocessConfig, ResNetConfig
from dcn_det.models.backbones.aligned_inception_resnet import AlignedInceptionResNet
from dcn_det.weights.settings import OF_BACKBONE, get
from tests.config.helpers import error

AIR = "aligned_inception_resnet"
BASES = Path(__file__).resolve().parents[2] / "configs" / "base"


def layout(backbone: BackboneConfig) -> dict[str, object]:
    plain = {"model": {"backbone": backbone.model_dump()}}
    return {key: tuple(value) if isinstance(value := get(plain, key), list) else value for key in OF_BACKBONE}


@pytest.mark.parametrize(
    ("weights", "expected"),
    [("torchvision", TORCHVISION), ("none", CONVERTED), ("weights/x.pth", CONVERTED)],
)
@pytest.mark.parametrize("kind", ["resnet18", "resnet50", AIR])
def test_defaults_follow_from_the_weights(write, kind, weights, expected):
    path = write(f"model: {{backbone: {{kind: {kind}, weights: {weights}}}}}\n")
    config = load_config(path)
    if kind == AIR and weights != "torchvision":
        expected = ALIGNED
    assert layout(config.model.backbone) == of_backbone(expected) == of_backbone(layout_of(weights, kind))
    assert all(config.origins[key] == "default" for key in OF_BACKBONE)


def test_the_default_weights_are_torchvision():
    assert layout(Config().model.backbone) == of_backbone(TORCHVISION)
    assert layout(ResNetConfig()) == of_backbone(TORCHVISION)


def test_the_tables_have_the_keys_that_belong_to_weights():
    for each in (TORCHVISION, CAFFE, CONVERTED, ALIGNED):
        assert tuple(of_backbone(each)) == OF_BACKBONE


def test_what_is_stated_stays(write):
    path = write("model: {backbone: {weights: x.pth, stem_pool: pad, preprocess: {channel_order: bgr}}}\n")
    backbone = load_config(path).model.backbone
    changed = {"stem_pool": "pad", "preprocess.channel_order": "bgr"}
    assert layout(backbone) == of_backbone(CONVERTED | changed)
    assert ResNetConfig(weights="none", preprocess=PreprocessConfig(mean=(1, 2, 3))).preprocess.mean == (1, 2, 3)


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("stride_on", "first_1x1", "3x3"),
        ("stem_pool", "ceil", "pad"),
        ("norm_eps", "1e-3", "1e-05"),
        ("preprocess.channel_order", "bgr", "rgb"),
        ("preprocess.mean", "[0, 0, 0]", "[123.675, 116.28, 103.53]"),
        ("preprocess.std", "[1, 1, 1]", "[58.395, 57.12, 57.375]"),
    ],
)
def test_a_layout_that_contradicts_torchvision_is_refused(write, key, value, allowed):
    path = write("model:\n  backbone:\n    kind: resnet50\n    weights: torchvision\n")
    message = error(path, f"model.backbone.{key}={value}")
    assert message.startswith(f"override: model.backbone.{key}: ") and message.endswith(f"allowed: {allowed}")
    assert "torchvision" in message and "\n" not in message


def test_every_contradiction_has_its_place(write):
    write("model:\n  backbone:\n    stem_pool: ceil\n", "b.yaml")
    message = error(write("base: b.yaml\nmodel:\n  backbone:\n    stride_on: first_1x1\n"))
    assert [line.partition(": ")[0] for line in sorted(message.splitlines())] == ["a.yaml:4", "b.yaml:3"]


@pytest.mark.parametrize("kind", ["resnet18", "resnet34"])
def test_basic_blocks_have_one_place_for_the_stride(write, kind):
    path = write(f"model: {{backbone: {{kind: {kind}, stride_on: first_1x1}}}}\n")
    backbone = load_config(path).model.backbone
    assert isinstance(backbone, ResNetConfig) and backbone.stride_on == "first_1x1"
    assert "model.backbone.stem_pool: " in error(path, "model.backbone.stem_pool=ceil")


def test_aligned_inception_resnet_is_built_as_its_defaults_say():
    """The constructor's defaults are those of the settings, which depend on the kind."""
    parameters = inspect.signature(AlignedInceptionResNet).parameters
    assert {key: parameters[key].default for key in ("stride_on", "stem_pool")} == {
        key: ALIGNED[key] for key in ("stride_on", "stem_pool")
    }


@pytest.mark.parametrize(
    ("name", "expected"), [("resnet101", TORCHVISION), ("resnet101_caffe", CAFFE), ("air", ALIGNED)]
)
def test_the_base_configs_agree_with_the_tables(name, expected):
    plain = yaml.safe_load((BASES / f"{name}.yaml").read_text())
    stated = {key: get(plain, key) for key in OF_BACKBONE if get(plain, key) is not None}
    assert len(stated) >= 5
    table = {key: list(value) if isinstance(value, tuple) else value for key, value in of_backbone(expected).items()}
    assert stated == {key: table[key] for key in stated}
