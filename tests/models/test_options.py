"""An option stands in its settings section and in the constructor it reaches, with the same default."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from dcn_det.config import testing
from dcn_det.config.model import (
    AlignedInceptionResNetConfig,
    ClassAwareRPNHeadConfig,
    DeformConfig,
    FasterRCNNHeadConfig,
    PreprocessConfig,
    ResNetConfig,
    RFCNHeadConfig,
    RPNConfig,
)
from dcn_det.config.options import Options, argument_names
from dcn_det.config.section import Section
from dcn_det.inference.box_average import BoxAverage
from dcn_det.models.anchor_head import AnchorSampling
from dcn_det.models.backbones.aligned_inception_resnet import AlignedInceptionResNet
from dcn_det.models.backbones.convolution import DeformableBlocks
from dcn_det.models.backbones.resnet import ResNet
from dcn_det.models.class_aware_rpn import ClassAwareRPN
from dcn_det.models.heads.faster_rcnn import FasterRCNNHead
from dcn_det.models.heads.rfcn import RFCNHead
from dcn_det.models.postprocess import PostProcess
from dcn_det.models.preprocess import Preprocess
from dcn_det.models.rpn import RPN, ProposalSelection
from dcn_det.models.targets import RoISampler

PAIRS: list[tuple[Callable[..., Any], type[Section], set[str]]] = [
    (ResNet, ResNetConfig, {"deform"}),
    # The network has a layout of its own, which its section takes from `layouts.ALIGNED`.
    (AlignedInceptionResNet, AlignedInceptionResNetConfig, {"deform", "stem_pool", "stride_on"}),
    (DeformableBlocks, DeformConfig, set()),
    (Preprocess, PreprocessConfig, set()),
    (RPN, RPNConfig, {"anchors"}),
    (AnchorSampling, RPNConfig, set()),
    (ProposalSelection, RPNConfig, set()),
    (ClassAwareRPN, ClassAwareRPNHeadConfig, {"anchors"}),
    (FasterRCNNHead, FasterRCNNHeadConfig, set()),
    (RFCNHead, RFCNHeadConfig, set()),
    (RoISampler, FasterRCNNHeadConfig, set()),
    (PostProcess, testing.TestConfig, set()),
    (BoxAverage, testing.BoxAverageConfig, set()),
]


def defaults(constructor: Callable[..., Any]) -> dict[str, Any]:
    """Defaults of a constructor's arguments, with those that it passes on."""
    found: dict[str, Any] = {}
    for owner in reversed(inspect.getmro(constructor) if isinstance(constructor, type) else [constructor]):
        if "__init__" in vars(owner) and owner is not object:
            parameters = inspect.signature(owner).parameters.values()
            found |= {each.name: each.default for each in parameters if each.default is not each.empty}
    return {name: value for name, value in found.items() if name in argument_names(constructor)}


@pytest.mark.parametrize(("constructor", "section", "apart"), PAIRS)
def test_defaults_agree(constructor: Callable[..., Any], section: type[Section], apart: set[str]) -> None:
    ours, theirs = defaults(constructor), section.model_fields
    shared = (ours.keys() & theirs.keys()) - apart
    assert shared
    assert {name: ours[name] for name in shared} == {name: theirs[name].default for name in shared}


def test_a_setting_without_effect_is_found() -> None:
    options = Options(DeformConfig(lr_mult=0.5))
    assert options(DeformableBlocks, border="dcn_v1") == {
        **DeformConfig().model_dump(), "lr_mult": 0.5, "border": "dcn_v1"
    }  # fmt: skip
    options.done()
    options = Options(RPNConfig())
    options(AnchorSampling)
    with pytest.raises(AssertionError, match="post_nms"):
        options.done()
