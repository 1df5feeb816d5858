"""Layout and preprocessing of residual networks, by the source of their ImageNet weights.

With another layout, the same weights are a different network, and no shape reveals it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TORCHVISION: dict[str, Any] = {
    "stride_on": "3x3",
    "stem_pool": "pad",
    "norm_eps": 1e-5,
    "preprocess.channel_order": "rgb",
    "preprocess.mean": (123.675, 116.28, 103.53),
    "preprocess.std": (58.395, 57.12, 57.375),
}
"""torchvision's weights."""

CAFFE: dict[str, Any] = {
    "stride_on": "first_1x1",
    "stem_pool": "ceil",
    "norm_eps": 1e-5,
    "preprocess.channel_order": "bgr",
    "preprocess.mean": (123.15, 115.90, 103.06),
    "preprocess.std": (1.0, 1.0, 1.0),
}
"""The original Caffe release (He et al., CVPR 2016), with the mean of the authors' released code."""

CONVERTED: dict[str, Any] = {**CAFFE, "preprocess.channel_order": "rgb"}
"""The Caffe release with its first convolution converted to RGB, as in the authors' networks and by
``dcn-det convert-weights``. Also the default without weights."""


ALIGNED: dict[str, Any] = {**CONVERTED, "stride_on": "3x3", "stem_pool": "pad"}
"""Aligned-Inception-ResNet, for which there are no public weights; its module gives the reasons."""


def layout_of(weights: object, kind: object) -> dict[str, Any]:
    """Returns the defaults of ``model.backbone.*`` for ``model.backbone.weights`` and ``model.backbone.kind``."""
    if weights == "torchvision":
        return TORCHVISION
    return ALIGNED if kind == "aligned_inception_resnet" else CONVERTED


def of_backbone(layout: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a layout under the keys of a whole config."""
    return {f"model.backbone.{key}": value for key, value in layout.items()}


def contradictions(weights: object, kind: object, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values that torchvision's weights require, by key, where others are given.

    Args:
        weights: ``model.backbone.weights``; only ``torchvision`` prescribes a layout.
        kind: ``model.backbone.kind``; basic blocks have one place for the stride and ignore ``stride_on``.
        given: values by key, those of a layout.
    """
    if weights != "torchvision":
        return {}
    return {
        key: value
        for key, value in TORCHVISION.items()
        if key in given and given[key] != value and not (key == "stride_on" and kind in ("resnet18", "resnet34"))
    }
