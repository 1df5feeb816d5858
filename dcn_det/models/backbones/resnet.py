"""Residual networks (He et al., CVPR 2016) with dilated and deformable convolutions.

Parameters carry torchvision's names, so its weights load by name; blocks carry the names of the original
release (``res4b22``).
"""

from __future__ import annotations

import string
from functools import partial
from typing import Literal

from torch import Tensor, nn

from dcn_det.models.backbones.convolution import (
    Conv3x3,
    DeformableBlocks,
    conv,
    deformable3x3,
    offset_lr_multipliers,
    plain3x3,
)
from dcn_det.models.norm import Norm, norm_factory

STAGES = ("res2", "res3", "res4", "res5")
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


def _shortcut(in_channels: int, out_channels: int, stride: int, norm: Norm) -> nn.Module | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(conv(in_channels, out_channels, 1, stride), norm(out_channels))


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
        self.downsample = _shortcut(in_channels, channels, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        x += shortcut
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
        self.downsample = _shortcut(in_channels, out_channels, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        x += shortcut
        return self.relu(x)


class ResNet(nn.Module):
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
        super().__init__()
        deform = deformable or DeformableBlocks()
        names = stage_block_names(kind)
        unknown = set(deform.names) - set(block_names(kind))
        if unknown:
            raise ValueError(f"{kind} has no blocks {sorted(unknown)}")
        if isinstance(res5_dilation, int):
            res5_dilation = (res5_dilation,) * len(names["res5"])
        if len(res5_dilation) != len(names["res5"]):
            raise ValueError(f"{kind} has {len(names['res5'])} blocks in res5, got dilations {res5_dilation}")

        make_norm = norm_factory(norm, norm_eps)
        block = BasicBlock if kind in BASIC else Bottleneck
        self.conv1 = conv(3, stem_width, 7, stride=2)
        self.bn1 = make_norm(stem_width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, ceil_mode=True) if stem_pool == "ceil" else nn.MaxPool2d(3, 2, padding=1)

        self.channels: dict[str, int] = {}
        self.strides: dict[str, int] = {}
        in_channels, total_stride = stem_width, 4
        stage_strides = (1, 2, 2, res5_stride)
        for index, (stage, stage_stride) in enumerate(zip(STAGES, stage_strides)):
            channels = width * 2**index
            blocks = []
            for position, name in enumerate(names[stage]):
                blocks.append(
                    block(
                        in_channels,
                        channels,
                        stride=stage_stride if position == 0 else 1,
                        dilation=res5_dilation[position] if stage == "res5" else 1,
                        stride_on_3x3=stride_on == "3x3",
                        norm=make_norm,
                        main3x3=partial(deformable3x3, deform) if name in deform.names else plain3x3,
                    )
                )
                in_channels = channels * block.expansion
            self.add_module(f"layer{index + 1}", nn.Sequential(*blocks))
            total_stride *= stage_stride
            self.channels[stage], self.strides[stage] = in_channels, total_stride

        self._offset_lr_mult = deform.lr_mult
        stages = [[self.conv1, self.bn1], *([stage] for stage in self._layers())]
        self._frozen = [module for stage in stages[:frozen_stages] for module in stage]
        for module in self._frozen:
            module.requires_grad_(False)

    def _layers(self) -> list[nn.Module]:
        return [self.get_submodule(f"layer{index}") for index in range(1, 5)]

    def train(self, mode: bool = True) -> ResNet:
        """As usual, but frozen stages stay in evaluation mode, so that batch norm keeps its statistics."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def lr_multipliers(self) -> dict[str, float]:
        """Learning-rate multipliers other than 1, by parameter name."""
        return offset_lr_multipliers(self, self._offset_lr_mult)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) normalised images -> outputs of ``res2`` ... ``res5``, each (B, channels, h, w)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        features = {}
        for stage, layer in zip(STAGES, self._layers()):
            x = layer(x)
            features[stage] = x
        return features
