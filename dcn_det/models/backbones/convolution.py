"""The convolutions that backbones are made of, plain, dilated or deformable, without bias, and with normalization."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from dcn_det.models.folded import FoldedConv
from dcn_det.ops import DeformConv2d

Conv3x3 = Callable[[int, int, int, int], nn.Module]
"""Makes a 3x3 convolution from its input channels, output channels, stride and dilation."""

LR_MULT = {"v1": 1.0, "v2": 0.1}
"""Learning-rate multipliers of the authors' code, by kind."""


@dataclass(frozen=True, slots=True)
class DeformableBlocks:
    """The deformable blocks of a backbone.

    Attributes:
        blocks: names, as the backbone spells them. In a basic block the second 3x3 convolution deforms.
        kind: ``v1`` learns offsets; ``v2`` also learns a modulation mask (Zhu et al., CVPR 2019).
        offset_groups: sets of offsets, each for an equal share of the channels.
        offset_dilation: dilation of the 3x3 convolution that predicts the offsets; ``host`` takes that of the
            deformable one, as in the paper.
        mask_scale: factor on the sigmoid of the mask of ``v2``, see :class:`dcn_det.ops.DeformConv2d`.
        border: ``zeros`` or ``dcn_v1``, see :func:`dcn_det.ops.deform_conv2d`.
        lr_mult: learning-rate multiplier of the convolutions that predict offsets and mask; None: that of the authors'
            code, 1 for ``v1`` and 0.1 for ``v2``.
    """

    blocks: tuple[str, ...] = ()
    kind: Literal["v1", "v2"] = "v1"
    offset_groups: int = 4
    offset_dilation: Literal["host"] | int = "host"
    mask_scale: float = 2.0
    border: Literal["zeros", "dcn_v1"] = "zeros"
    lr_mult: float | None = None


def conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    """Returns a convolution with padding that keeps the size, except for the stride; He's normal initialization."""
    padding = dilation * (kernel // 2)
    layer = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, dilation, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


def conv_norm(conv: nn.Module, norm: nn.Module, x: Tensor, *, add: Tensor | None = None, relu: bool = True) -> Tensor:
    """Computes ``norm(conv(x))``, adds ``add`` and applies ReLU.

    All layers with normalization go through this function, so that :func:`dcn_det.models.folded.fold` can replace them.

    Args:
        conv: a convolution, plain or deformable.
        norm: any normalization; not applied after a :class:`dcn_det.models.folded.FoldedConv`, which includes it.
        x: (B, in_channels, H, W).
        add: (B, out_channels, H_out, W_out).
        relu: whether to apply ReLU.
    """
    if isinstance(conv, FoldedConv):
        folded: Tensor = conv(x, add=add, relu=relu)
        return folded
    x = norm(conv(x))
    if add is not None:
        x += add
    return F.relu(x, inplace=True) if relu else x


def plain3x3(in_channels: int, out_channels: int, stride: int, dilation: int) -> nn.Conv2d:
    """:func:`conv` with a kernel of 3."""
    return conv(in_channels, out_channels, 3, stride, dilation)


def deformable3x3(
    deform: DeformableBlocks, in_channels: int, out_channels: int, stride: int, dilation: int
) -> DeformConv2d:
    """Returns a deformable :func:`plain3x3`, which it equals until its offsets and mask are trained."""
    layer = DeformConv2d(
        in_channels,
        out_channels,
        kernel_size=3,
        stride=stride,
        padding=dilation,
        dilation=dilation,
        bias=False,
        offset_groups=deform.offset_groups,
        modulated=deform.kind == "v2",
        mask_scale=deform.mask_scale,
        border=deform.border,
        offset_dilation=None if deform.offset_dilation == "host" else deform.offset_dilation,
    )
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


def offset_lr_multipliers(backbone: nn.Module, deform: DeformableBlocks) -> dict[str, float]:
    """Returns the multiplier for every parameter that predicts offsets or mask, by name; empty when it is 1."""
    multiplier = LR_MULT[deform.kind] if deform.lr_mult is None else deform.lr_mult
    if multiplier == 1:
        return {}
    layers = [name for name, module in backbone.named_modules() if isinstance(module, DeformConv2d)]
    return {f"{layer}.offset.{parameter}": multiplier for layer in layers for parameter in ("weight", "bias")}
