"""Residual networks (He et al., CVPR 2016) with dilated and deformable convolutions.

Parameters carry torchvision's names, so its weights load by name; blocks carry the names of the original
release (``res4b22``).
"""

from __future__ import annotations

import string
from functools import partial
from typing import Literal

from torch import Tensor, nn

from dcn_det.models.backbones.convolution import Conv3x3, DeformableBlocks, conv, deformable3x3, plain3x3
from dcn_det.models.backbones.residual import STAGES, ResidualBackbone, res5_dilations, shortcut
from dcn_det.models.norm import Norm, norm_factory

DEPTHS: dict[str, tuple[int, int, int, int]] = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}
BASIC = ("resnet18", "resnet34")
"""Kinds made of basic blocks; the others have bottlenecks."""


def stage_block_names(kind: str) -> dict[str, tuple[str, ...]]:
    """Names of the residual blocks of each stage, as the original release has them.

    Blocks are lettered (``res5a``, ``res5b``, ``res5c``), except in the long stages of ResNet-101 and 152,
    where they are ``res4a``, ``res4b1``, ``res4b2`` and so on.
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
    """All names of :func:`stage_block_names`, in order."""
    return tuple(name for names in stage_block_names(kind).values() for name in names)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, the stride on the first, both dilated; the second is the one that may deform."""

    expansion = 1

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
        del stride_on_3x3  # There is no 1x1 convolution to choose instead.
        self.conv1 = plain3x3(in_channels, channels, stride, dilation)
        self.bn1 = norm(channels)
        self.conv2 = main3x3(channels, channels, 1, dilation)
        self.bn2 = norm(channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(in_channels, channels, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        x += identity
        return self.relu(x)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1; the stride is on the first 1x1 or on the 3x3, which is the one that may deform."""

    expansion = 4

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
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(in_channels, out_channels, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        x += identity
        return self.relu(x)


class ResNet(ResidualBackbone):
    """ResNet-18, 34, 50, 101 or 152 without its classifier.

    The defaults are the authors' backbone: stride on the first 1x1, unpadded ceil-mode pooling, res5 at
    stride 16 with dilation 2, batch norm constant, stem and res2 not trained. torchvision's networks are
    ``stride_on="3x3"``, ``stem_pool="pad"``, ``res5_stride=2``, ``res5_dilation=1``. Convolutions start from
    He's normal initialisation (fan out), offsets from zero.

    Args:
        kind: a key of :data:`DEPTHS`.
        width: channels of the 3x3 convolutions of res2; later stages double it, and bottlenecks put out
            four times as many.
        stem_width: channels of the first convolution.
        stride_on: which convolution of a bottleneck carries the stride.
        stem_pool: 3x3 stride-2 max pooling unpadded with ceil rounding, or padded by one with floor rounding.
        norm, norm_eps: see :func:`dcn_det.models.norm.norm_factory`.
        frozen_stages: this many leading stages keep their parameters and statistics: 1 the stem, 2 the stem
            and res2, up to 5.
        res5_stride: 1 or 2.
        res5_dilation: of the 3x3 convolutions of res5, for all or one for each of its blocks.
        deformable: the blocks whose 3x3 convolution is deformable.

    Attributes:
        channels: of each stage's output, by name.
        strides: of each stage's output, in input pixels, by name.
    """

    def __init__(
        self,
        kind: str = "resnet101",
        *,
        width: int = 64,
        stem_width: int = 64,
        stride_on: Literal["first_1x1", "3x3"] = "first_1x1",
        stem_pool: Literal["ceil", "pad"] = "ceil",
        norm: Literal["frozen_bn", "bn", "sync_bn", "gn"] = "frozen_bn",
        norm_eps: float = 1e-5,
        frozen_stages: int = 2,
        res5_stride: Literal[1, 2] = 1,
        res5_dilation: int | tuple[int, ...] = 2,
        deformable: DeformableBlocks | None = None,
    ) -> None:
        deform = deformable or DeformableBlocks()
        names = stage_block_names(kind)
        unknown = set(deform.names) - set(block_names(kind))
        if unknown:
            raise ValueError(f"{kind} has no blocks {sorted(unknown)}")
        dilations = res5_dilations(kind, res5_dilation, len(names["res5"]))
        make_norm = norm_factory(norm, norm_eps)
        block = BasicBlock if kind in BASIC else Bottleneck

        def make_block(stage: str, position: int, in_channels: int, channels: int, stride: int) -> nn.Module:
            return block(
                in_channels,
                channels,
                stride=stride,
                dilation=dilations[position] if stage == "res5" else 1,
                stride_on_3x3=stride_on == "3x3",
                norm=make_norm,
                main3x3=partial(deformable3x3, deform) if names[stage][position] in deform.names else plain3x3,
            )

        super().__init__(
            make_block,
            DEPTHS[kind],
            expansion=block.expansion,
            width=width,
            stem_width=stem_width,
            stem_pool=stem_pool,
            norm=make_norm,
            frozen_stages=frozen_stages,
            res5_stride=res5_stride,
            offset_lr_mult=deform.lr_mult,
        )
