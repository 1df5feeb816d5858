"""The authors' released networks (MXNet parameters): names of their parameters, and settings of their weights.

Source: the authors' released code; names of layers from its symbols, settings from its configurations.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from dcn_det.config.layouts import CONVERTED, of_backbone
from dcn_det.errors import UserError
from dcn_det.models.deeplab import upsampling_weights
from dcn_det.weights.mxnet import Array
from dcn_det.weights.resnet_names import block_modules, caffe_layer

LINKS = "https://1drv.ms/u/s!Am-5JzdW2XHzhqMSjehIcCgAhvEAHw or https://pan.baidu.com/s/1dFlPFED"
"""Folders of the released networks, for browsers; from the README of the released code."""
FILES = {
    "rcnn_coco-0000.params": "coco/faster_rcnn_r101",
    "rcnn_dcn_coco-0000.params": "coco/faster_rcnn_r101_dcn",
    "rfcn_coco-0000.params": "coco/rfcn_r101",
    "rfcn_dcn_coco-0000.params": "coco/rfcn_r101_dcn",
    "fpn_coco-0000.params": "coco/faster_rcnn_r101_fpn",
    "fpn_dcn_coco-0000.params": "coco/faster_rcnn_r101_fpn_dcn",
    "deeplab_voc-0000.params": "voc/deeplab_r101_atrous2",
    "deeplab_dcn_voc-0000.params": "voc/deeplab_r101_dconv",
    "deeplab_cityscapes-0000.params": "cityscapes/deeplab_r101_atrous2",
    "deeplab_dcn_cityscapes-0000.params": "cityscapes/deeplab_r101_dconv",
}
"""Configs of the networks in these folders, by file name."""

BACKBONE_KIND = "resnet101"
PARAMETERS = {
    "arg:weight": "weight",
    "arg:bias": "bias",
    "arg:gamma": "weight",
    "arg:beta": "bias",
    "aux:moving_mean": "running_mean",
    "aux:moving_var": "running_var",
}
"""Our parameter by group and parameter of a layer."""

BACKBONE_SETTINGS = of_backbone(CONVERTED)
"""Settings of their ImageNet network: the original Caffe release, with its first convolution converted to RGB."""

_DETECTOR: dict[str, Any] = {
    **BACKBONE_SETTINGS,
    "model.box_corners": "inclusive",
    "model.backbone.deform.border": "dcn_v1",
    "model.rpn.anchors.ratios": (0.5, 1.0, 2.0),
    "model.head.box_stds": (0.1, 0.1, 0.2, 0.2),
    "model.head.offset_std": 0.1,
    "model.head.samples_per_bin": 4,
}
_STRIDE_16 = {**_DETECTOR, "model.backbone.res5_stride": 1, "model.backbone.res5_dilation": 2}
_STRIDE_32 = {**_DETECTOR, "model.backbone.res5_stride": 2, "model.backbone.res5_dilation": 1}

SCALES: dict[int, tuple[float, ...]] = {12: (4, 8, 16, 32), 9: (8, 16, 32), 3: (8,)}
"""Scales of the anchors (with three ratios each) by the number of anchors: COCO, VOC, feature pyramid."""

_RPN = {"rpn_cls_score": "rpn.cls_score", "rpn_bbox_pred": "rpn.bbox_pred"}
_ONE_LEVEL = {**_RPN, "rpn_conv_3x3": "rpn.conv", "conv_new_1": "head.reduce"}
_PYRAMID = {
    **_RPN,
    "rpn_conv": "rpn.conv",
    **{f"fpn_p{level}_1x1": f"backbone.fpn.inner_blocks.{level - 2}.0" for level in range(2, 6)},
    **{f"fpn_p{level}": f"backbone.fpn.layer_blocks.{level - 2}.0" for level in range(2, 6)},
    "fpn_p6": "backbone.p6",
    **{f"offset_p{level}": f"head.offset.{level - 2}" for level in range(2, 6)},
}
_TWO_FC = {
    "fc_new_1": "head.fc1",
    "fc_new_2": "head.fc2",
    "cls_score": "head.cls_score",
    "bbox_pred": "head.bbox_pred",
}


_DEEPLAB: dict[str, Any] = {
    **BACKBONE_SETTINGS,
    "model.backbone.res5_stride": 1,
    "model.backbone.res5_dilation": 2,
    "model.backbone.deform.border": "dcn_v1",
}


@dataclass(frozen=True)
class Network:
    """One kind of released network.

    Attributes:
        title: name in messages.
        mark: a layer that distinguishes it from the kinds after it in :data:`NETWORKS`.
        layers: our modules by layers outside the residual network.
        kind: value of ``model.kind``.
        settings: settings that belong to its weights.
        deltas: layer of box deltas; empty if it has none.
        bins: number of consecutive channels of that layer with the same coordinate, one per bin.
        plain_pooling: value of ``model.head.pooling`` without deformable pooling; empty without RoIs.
        offset: a layer that only deformable pooling has.
        pyramid: value of ``model.fpn``.
        backbone: our module of the residual network.
        upsampling: layer of a constant bilinear upsampling by 16, which is no parameter here.
    """

    title: str
    mark: str
    layers: Mapping[str, str]
    kind: str
    settings: Mapping[str, Any]
    deltas: str = ""
    bins: int = 1
    plain_pooling: str = ""
    offset: str = ""
    pyramid: bool = False
    backbone: str = "backbone"
    upsampling: str = ""


NETWORKS = (
    Network(
        "R-FCN",
        "rfcn_cls",
        {
            **_ONE_LEVEL,
            "rfcn_cls": "head.cls_score",
            "rfcn_bbox": "head.bbox_pred",
            "rfcn_cls_offset_t": "head.cls_offset",
            "rfcn_bbox_offset_t": "head.bbox_offset",
        },
        "rfcn",
        _STRIDE_16,
        deltas="rfcn_bbox",
        bins=49,
        plain_pooling="average",
        offset="rfcn_cls_offset_t",
    ),
    Network(
        "Faster R-CNN on a feature pyramid",
        "fpn_p2",
        {**_PYRAMID, **_TWO_FC},
        "faster_rcnn",
        _STRIDE_32,
        deltas="bbox_pred",
        bins=1,
        plain_pooling="max",
        offset="offset_p2",
        pyramid=True,
        backbone="backbone.bottom_up",
    ),
    Network(
        "Faster R-CNN",
        "fc_new_1",
        {**_ONE_LEVEL, "offset": "head.offset", **_TWO_FC},
        "faster_rcnn",
        _STRIDE_16,
        deltas="bbox_pred",
        bins=1,
        plain_pooling="max",
        offset="offset",
    ),
    Network(
        "DeepLab",
        "fc6",
        {"fc6": "head.reduce", "score": "head.score"},
        "deeplab",
        _DEEPLAB,
        upsampling="upsampling",
    ),
)


def split(name: str) -> tuple[str, str, bool] | None:
    """Splits ``arg:res2a_branch1_weight`` into layer ``res2a_branch1``, parameter ``weight``, and no test copy.

    Files saved during training also contain copies of the layer of box deltas for testing, multiplied by the deviations
    of the targets; their names end in ``_test``.

    Returns:
        None if the name has another form.
    """
    match = re.fullmatch(r"(arg|aux):(.+)_(weight|bias|gamma|beta|moving_mean|moving_var)(_test)?", name)
    if match is None or f"{match[1]}:{match[3]}" not in PARAMETERS:
        return None
    return match[2], PARAMETERS[f"{match[1]}:{match[3]}"], match[4] is not None


def recognise(names: Collection[str]) -> Network | None:
    """Returns the kind of network with these parameters; None for a residual network.

    Raises:
        UserError: the network is neither.
    """
    layers = {parts[0] for name in names if (parts := split(name)) is not None}
    for network in NETWORKS:
        if network.mark in layers:
            return network
    if {"conv1", "bn_conv1", "res2a_branch1", "res5c_branch2c"} <= layers:
        return None
    some = ", ".join(list(names)[:3]) or "nothing"
    titles = ", ".join(network.title for network in NETWORKS)
    raise UserError(
        f"it contains none of the known networks (the authors' {titles}, ResNet-101); its names are like {some}"
    )


def our_name(name: str, network: Network | None) -> str | None:
    """Returns our name for a parameter of a released network, or None if there is none.

    Args:
        name: name in the file.
        network: kind of detector; None for a residual network, whose names are those of our backbone.
    """
    parts = split(name)
    if parts is None:
        return None
    layer, parameter, _ = parts
    module = caffe_layer(layer, block_modules(BACKBONE_KIND))
    if network is None:
        return None if module is None else f"{module}.{parameter}"
    if layer in network.layers:
        return f"{network.layers[layer]}.{parameter}"
    return None if module is None else f"{network.backbone}.{module}.{parameter}"


def architecture_of(network: Network, names: Iterable[str]) -> dict[str, Any]:
    """Returns settings of the architecture that the shapes of arrays do not show."""
    layers = {parts[0] for name in names if (parts := split(name)) is not None}
    blocks = [block for block in block_modules(BACKBONE_KIND) if f"{block}_branch2b_offset" in layers]
    return {
        "model.kind": network.kind,
        "model.fpn": network.pyramid,
        "model.backbone.deform.blocks": blocks,
        "model.head.pooling": "deformable" if network.offset in layers else network.plain_pooling,
    }


def settings_of(network: Network, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Returns the settings that belong to these weights.

    Offset groups and anchors follow from shapes. The authors' detectors predict offsets with the dilation of the
    deformable convolution; those with a single group, from before the release, without dilation.

    Args:
        state: tensors by our names.
    """
    settings = dict(network.settings)
    scores = state.get("rpn.cls_score.bias")
    if scores is not None and scores.numel() // 2 in SCALES:
        settings["model.rpn.anchors.scales"] = SCALES[scores.numel() // 2]
    offsets = [value for name, value in state.items() if name.endswith("conv2.offset.bias")]
    if offsets:
        groups = max(1, offsets[0].numel() // (2 * 9))
        settings["model.backbone.deform.offset_groups"] = groups
        settings["model.backbone.deform.offset_dilation"] = 1 if groups == 1 else "host"
    return settings


def without_upsampling(arrays: Mapping[str, Array], network: Network) -> dict[str, Array]:
    """Removes the weights of a constant upsampling.

    Raises:
        UserError: they are not those of bilinear upsampling.
    """
    name = f"arg:{network.upsampling}_weight"
    if not network.upsampling or name not in arrays:
        return dict(arrays)
    taps = upsampling_weights(1, stride=16, size=32, first=-8).numpy()
    given = arrays[name]
    if given.shape[1:] != (1, 32, 32) or not np.allclose(given, taps * taps.T, atol=1e-3):
        raise UserError(f"{name} is not bilinear upsampling by 16")
    return {each: value for each, value in arrays.items() if each != name}


def settle_test_copies(arrays: Mapping[str, Array], network: Network, stds: tuple[float, ...]) -> dict[str, Array]:
    """Removes the copies for testing; one without an original replaces it, divided by the deviations.

    Args:
        arrays: arrays by the file's names.
        network: kind of detector.
        stds: deviations of (dx, dy, dw, dh), ``model.head.box_stds``.

    Returns:
        The arrays that are left.

    Raises:
        UserError: a copy is not its original times the deviations.
    """
    result = {name: value for name, value in arrays.items() if not name.endswith("_test")}
    for name in [name for name in arrays if name not in result]:
        parts = split(name)
        if parts is None or parts[0] != network.deltas:
            result[name] = arrays[name]  # listed as surplus later
            continue
        plain, copy = name.removesuffix("_test"), arrays[name].astype(np.float64)
        given = result.get(plain)
        if copy.size == 0 or copy.ndim == 0 or len(copy) % (4 * network.bins):
            fits = given is None  # listed as of another shape later
            result.setdefault(plain, arrays[name])
        else:
            factors = np.resize(np.repeat(stds, network.bins), len(copy)).reshape(-1, *[1] * (copy.ndim - 1))
            original = result.setdefault(plain, (copy / factors).astype(np.float32)).astype(np.float64)
            fits = copy.shape == original.shape and np.allclose(
                copy, original * factors, atol=1e-3 * np.abs(copy).max()
            )
        if not fits:
            raise UserError(f"{name} is not {plain} times the deviations {', '.join(f'{each:g}' for each in stds)}")
    return result
