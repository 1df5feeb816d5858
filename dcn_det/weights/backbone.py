"""Loads pretrained weights into backbones."""

from __future__ import annotations

from typing import Any

from torch import nn

from dcn_det.config.model import BackboneConfig, ResidualBackboneConfig, ResNetConfig
from dcn_det.errors import UserError
from dcn_det.models.backbones.fpn import FeaturePyramid
from dcn_det.models.detector import Backbone
from dcn_det.weights import torchvision as torchvision_weights
from dcn_det.weights.files import load_into, read_backbone
from dcn_det.weights.settings import as_overrides, get


def load_backbone_weights(backbone: Backbone, settings: BackboneConfig) -> None:
    """Loads the weights given by ``model.backbone.weights``.

    Args:
        backbone: built from these settings, possibly with a feature pyramid.
        settings: settings of the backbone; ``weights: none`` loads nothing.

    Raises:
        UserError: the weights cannot be read or downloaded, or do not fit the settings.
    """
    if settings.weights == "none":
        if isinstance(settings, ResidualBackboneConfig) and (settings.norm == "frozen_bn" or settings.frozen_stages):
            raise UserError(
                "model.backbone.weights: 'none' would leave frozen layers at random values; give weights, or set "
                "model.backbone.norm to gn or bn and model.backbone.frozen_stages to 0"
            )
        return
    if settings.weights == "torchvision":
        if not isinstance(settings, ResNetConfig):
            raise UserError(
                f"model.backbone.weights: torchvision has none for {settings.kind}; give a local file, or train from "
                "scratch with weights none, norm gn or bn, and frozen_stages 0"
            )
        if (settings.width, settings.stem_width) != (64, 64):
            raise UserError(
                "model.backbone.weights: torchvision's have width 64 and stem_width 64, "
                f"not {settings.width} and {settings.stem_width}"
            )
        source, state = f"torchvision ({settings.kind})", torchvision_weights.imagenet_weights(settings.kind)
    else:
        source = settings.weights
        state, recorded = read_backbone(source)
        _check_recorded(settings, recorded)
    network = backbone.bottom_up if isinstance(backbone, FeaturePyramid) else backbone
    assert isinstance(network, nn.Module)
    # The classifier is not used, and weights of a plain network have no offsets.
    load_into(network, state, source=source, ignored=("fc.",), optional=(".offset.weight", ".offset.bias"))


def _check_recorded(settings: BackboneConfig, recorded: dict[str, Any]) -> None:
    """Raises a UserError if settings differ from those stored with the weights."""
    plain = {"model": {"backbone": settings.model_dump(mode="json")}}
    wrong = {key: value for key, value in recorded.items() if get(plain, key) != value}
    if wrong:
        raise UserError(
            f"model.backbone.weights: '{settings.weights}' was made for other settings; add {as_overrides(wrong)}"
        )
