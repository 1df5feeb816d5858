"""Names of the layers of a residual network in other programs. Those of our backbone are torchvision's."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from dcn_det.errors import UserError
from dcn_det.models.backbones.residual import STAGES
from dcn_det.models.backbones.resnet import stage_block_names

_CONVOLUTIONS = {"1": "downsample.0", "2a": "conv1", "2b": "conv2", "2c": "conv3"}
_NORMS = {"1": "downsample.1", "2a": "bn1", "2b": "bn2", "2c": "bn3"}
_STEM = {"conv1": "conv1", "bn_conv1": "bn1", "scale_conv1": "bn1", "fc1000": "fc"}

CAFFE2 = {"w": "weight", "b": "bias", "bn_s": "weight", "bn_b": "bias"}
"""Our parameters by Detectron's names; ``bn_s`` and ``bn_b`` are batch norm merged into scale and shift."""


def block_modules(kind: str) -> dict[str, str]:
    """Returns our modules of the residual blocks by their names in the original release: ``res4b22``: ``layer3.22``."""
    return {
        name: f"layer{STAGES.index(stage) + 1}.{position}"
        for stage, names in stage_block_names(kind).items()
        for position, name in enumerate(names)
    }


def caffe_layer(layer: str, blocks: Mapping[str, str]) -> str | None:
    """Returns our module for a layer of the original release, whose names MXNet's conversion kept, or None.

    Args:
        layer: such as ``conv1``, ``res4b22_branch2b``, ``bn4b22_branch2b``, ``scale4b22_branch2b``, or the authors'
            ``res5a_branch2b_offset``.
        blocks: result of :func:`block_modules`.
    """
    if layer in _STEM:
        return _STEM[layer]
    match = re.fullmatch(r"(res|bn|scale)(\d\w*?)_branch(1|2[abc])(_offset)?", layer)
    if match is None or f"res{match[2]}" not in blocks:
        return None
    kind, block, branch, offset = match.groups()
    if offset and (kind, branch) != ("res", "2b"):
        return None
    part = (_CONVOLUTIONS if kind == "res" else _NORMS)[branch]
    return f"{blocks[f'res{block}']}.{part}{'.offset' if offset else ''}"


def renamed(names: Iterable[str], ours: Callable[[str], str | None]) -> dict[str, str]:
    """Returns the names in a file by our names; an unknown name is kept.

    Args:
        names: names in the file.
        ours: returns our name for one of them, or None.

    Raises:
        UserError: two of the names denote the same parameter.
    """
    theirs: dict[str, str] = {}
    for name in names:
        new = ours(name) or name
        if new in theirs:
            raise UserError(f"{theirs[new]} and {name} are both {new}")
        theirs[new] = name
    return theirs


def caffe2_name(name: str) -> str | None:
    """Returns our name for one of Detectron's, such as ``res4_22_branch2b_bn_s``, or None."""
    if match := re.fullmatch(r"(conv1|fc1000)_([wb])", name):
        return f"{_STEM[match[1]]}.{CAFFE2[match[2]]}"
    if match := re.fullmatch(r"res_conv1_(bn_[sb])", name):
        return f"bn1.{CAFFE2[match[1]]}"
    match = re.fullmatch(r"res([2-5])_(\d+)_branch(1|2[abc])_(w|bn_s|bn_b)", name)
    if match is None:
        return None
    stage, position, branch, parameter = match.groups()
    layer = (_CONVOLUTIONS if parameter == "w" else _NORMS)[branch]
    return f"layer{int(stage) - 1}.{position}.{layer}.{CAFFE2[parameter]}"
