"""Residual networks (He et al., CVPR 2016) with dilated and deformable convolutions.

Parameters have torchvision's names, so that its weights can be loaded by name; blocks have the names of the original
release (``res4b22``).
"""

from __future__ import annotations

import string
from functools import partial
from typing import Any

from torch import Tensor, nn

from dcn_det.models.backbones.convolution import Conv3x3, conv, conv_norm, deformable3x3, plain3x3
from dcn_det.models.backbones.residual import STAGES, ResidualBackbone, shortcut
from dcn_det.models.norm import Norm

DEPTHS: dict[str, tuple[int, int, int, int]] = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}
BASIC = ("resnet18", "resnet34")
"""Kinds with basic blocks; the others have bottlenecks."""


def stage_block_names(kind: str) -> dict[str, tuple[str, ...]]:
    """Returns the names of the residual blocks of each stage, as in the original release.

    Blocks have letters (``res5a``, ``res5b``, ``res5c``), except in the long stages of ResNet-101 and 152: ``res4a``,
    ``res4b1``, ``res4b2``, ...
    """
    numbered = ("res3", "res4") if kind in ("resnet101", "resnet152") else ()
    names = {}
    for stage, depth in zip(STAGES, DEPTHS[kind]):
        if stage in numbered:
            suffixes = ["a", *(f"b{i}" for i in range(1, depth))]
        else:
            suffixes = list(string.ascii_lowercase[:depth])
        names[stage] = tuple(stage + suffix for suffix in suffixes)
    return names


def block_names(kind: str) -> tuple[str, ...]:
    """Returns all names of :func:`stage_block_names`, in order."""
    return tuple(name for names in stage_block_names(kind).values() for name in names)


class BasicBlock(nn.Module):
    """Two dilated 3x3 convolutions, the first with the stride; the second can be deformable."""

    expansion = 1
    conv_norms = (("conv1", "bn1"), ("conv2", "bn2"))

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        stride: int,
        dilation: int,
        stride_on_3x3: bool,
        norm: Norm,
        main3x3: Conv3x3,
    ) -> None:
        super().__init__()
        del stride_on_3x3  # There is no 1x1 convolution.
        self.conv1 = plain3x3(in_channels, channels, stride, dilation)
        self.bn1 = norm(channels)
        self.conv2 = main3x3(channels, channels, 1, dilation)
        self.bn2 = norm(channels)
        self.downsample = shortcut(in_channels, channels, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        x = conv_norm(self.conv1, self.bn1, x)
        return conv_norm(self.conv2, self.bn2, x, add=identity)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, with the stride on the first 1x1 or on the 3x3, which can be deformable."""

    expansion = 4
    conv_norms = (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"))

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        stride: int,
        dilation: int,
        stride_on_3x3: bool,
        norm: Norm,
        main3x3: Conv3x3,
    ) -> None:
        super().__init__()
        out_channels = channels * self.expansion
        stride_1x1, stride_3x3 = (1, stride) if stride_on_3x3 else (stride, 1)
        self.conv1 = conv(in_channels, channels, 1, stride_1x1)
        self.bn1 = norm(channels)
        self.conv2 = main3x3(channels, channels, stride_3x3, dilation)
        self.bn2 = norm(channels)
        self.conv3 = conv(channels, out_channels, 1)
        self.bn3 = norm(out_channels)
        self.downsample = shortcut(in_channels, out_channels, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        x = conv_norm(self.conv1, self.bn1, x)
        x = conv_norm(self.conv2, self.bn2, x)
        return conv_norm(self.conv3, self.bn3, x, add=identity)


class ResNet(ResidualBackbone):
    """ResNet-18, 34, 50, 101 or 152 without its classifier.

    torchvision's networks have ``stride_on="3x3"``, ``stem_pool="pad"``, ``res5_stride=2``, ``res5_dilation=1``.

    Args:
        kind: a key of :data:`DEPTHS`.
        **options: see :class:`ResidualBackbone`.
    """

    def __init__(self, kind: str = "resnet101", **options: Any) -> None:
        super().__init__(kind, **options)

    @classmethod
    def depths(cls, kind: str) -> tuple[int, int, int, int]:
        return DEPTHS[kind]

    @classmethod
    def expansion_of(cls, kind: str) -> int:
        return _block(kind).expansion

    @classmethod
    def deformable_channels(cls, kind: str, width: int) -> dict[str, int]:
        stages = enumerate(stage_block_names(kind).values())
        return {name: width * 2**index for index, names in stages for name in names}

    def make_block(
        self, stage: str, position: int, in_channels: int, channels: int, stride: int, dilation: int
    ) -> nn.Module:
        name = stage_block_names(self.kind)[stage][position]
        return _block(self.kind)(
            in_channels,
            channels,
            stride=stride,
            dilation=dilation,
            stride_on_3x3=self.stride_on == "3x3",
            norm=self._norm,
            main3x3=partial(deformable3x3, self.deform) if name in self.deform.blocks else plain3x3,
        )


def _block(kind: str) -> type[BasicBlock] | type[Bottleneck]:
    return BasicBlock if kind in BASIC else Bottleneck
