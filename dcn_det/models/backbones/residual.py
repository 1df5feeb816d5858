"""What all residual backbones share: a stem, four stages of blocks, and stages that are not trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from torch import Tensor, nn

from dcn_det.models.backbones.convolution import conv, offset_lr_multipliers
from dcn_det.models.norm import Norm

STAGES = ("res2", "res3", "res4", "res5")


class MakeBlock(Protocol):
    """Makes the residual block of one position; it puts out ``expansion * channels``."""

    def __call__(self, stage: str, position: int, in_channels: int, channels: int, stride: int) -> nn.Module: ...


def shortcut(in_channels: int, out_channels: int, stride: int, norm: Norm) -> nn.Module | None:
    """1x1 convolution with normalisation, or nothing where the input fits as it is."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(conv(in_channels, out_channels, 1, stride), norm(out_channels))


class ResidualBackbone(nn.Module):
    """7x7 stride-2 stem, 3x3 stride-2 max pooling, four stages of residual blocks.

    Args:
        make_block: makes each block.
        depths: blocks of each stage.
        expansion: a block puts out this many times its ``channels``.
        width: ``channels`` of the blocks of res2; later stages double it.
        stem_width: channels of the first convolution.
        stem_pool: unpadded with ceil rounding, or padded by one with floor rounding.
        norm: makes normalisation layers.
        frozen_stages: this many leading stages keep their parameters and statistics: 1 the stem, 2 the stem
            and res2, up to 5.
        res5_stride: 1 or 2.
        offset_lr_mult: learning-rate multiplier of the convolutions that predict offsets.

    Attributes:
        channels: of each stage's output, by name.
        strides: of each stage's output, in input pixels, by name.
    """

    def __init__(
        self,
        make_block: MakeBlock,
        depths: Sequence[int],
        *,
        expansion: int,
        width: int,
        stem_width: int,
        stem_pool: Literal["ceil", "pad"],
        norm: Norm,
        frozen_stages: int,
        res5_stride: Literal[1, 2],
        offset_lr_mult: float,
    ) -> None:
        super().__init__()
        self.conv1 = conv(3, stem_width, 7, stride=2)
        self.bn1 = norm(stem_width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, ceil_mode=True) if stem_pool == "ceil" else nn.MaxPool2d(3, 2, padding=1)

        self.channels: dict[str, int] = {}
        self.strides: dict[str, int] = {}
        in_channels, total_stride = stem_width, 4
        for index, (stage, depth, stage_stride) in enumerate(zip(STAGES, depths, (1, 2, 2, res5_stride))):
            channels = width * 2**index
            blocks = []
            for position in range(depth):
                blocks.append(make_block(stage, position, in_channels, channels, stage_stride if position == 0 else 1))
                in_channels = channels * expansion
            self.add_module(f"layer{index + 1}", nn.Sequential(*blocks))
            total_stride *= stage_stride
            self.channels[stage], self.strides[stage] = in_channels, total_stride

        self._offset_lr_mult = offset_lr_mult
        stages = [[self.conv1, self.bn1], *([stage] for stage in self._layers())]
        self._frozen = [module for stage in stages[:frozen_stages] for module in stage]
        for module in self._frozen:
            module.requires_grad_(False)

    def _layers(self) -> list[nn.Module]:
        return [self.get_submodule(f"layer{index}") for index in range(1, 5)]

    def train(self, mode: bool = True) -> ResidualBackbone:
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


def res5_dilations(kind: str, dilation: int | tuple[int, ...], depth: int) -> tuple[int, ...]:
    """One dilation for each block of res5, from one number or one each."""
    if isinstance(dilation, int):
        return (dilation,) * depth
    if len(dilation) != depth:
        raise ValueError(f"{kind} has {depth} blocks in res5, got dilations {dilation}")
    return dilation
