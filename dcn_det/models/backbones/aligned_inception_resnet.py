"""Aligned-Inception-ResNet, the second backbone of Dai et al. (ICCV 2017, appendix).

Every convolution and pooling is padded, so that the cells of a feature map lie at the centres of their receptive
fields, and all stages repeat one block. The paper gives the widths and depths of the stages (those of ResNet-101)
and the number of parameters, 64.3 M with the classifier; the inside of a block is only in a figure. The block here
is the one of the public re-implementation by soeaver (pytorch-priv), whose count agrees with the paper's, with the
stride of a stage on the first 3x3 convolution of each branch. Of strides the paper says only that a 1x1 convolution
with stride 2 changes the dimension, which the shortcut does. On the first 1x1 of a branch, a stride would skip three
quarters of the cells.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcn_det.models.backbones.convolution import Conv3x3, conv, conv_norm, deformable3x3, plain3x3
from dcn_det.models.backbones.residual import ResidualBackbone, shortcut
from dcn_det.models.backbones.resnet import DEPTHS, stage_block_names
from dcn_det.models.norm import Norm

KIND = "aligned_inception_resnet"
CONVOLUTIONS = ("branch1b", "branch2b", "branch2c")
"""The 3x3 convolutions of a block: the one of the first branch and the two of the second."""


def deformable_names() -> dict[str, tuple[str, ...]]:
    """Returns valid names of deformable parts: blocks, with their three 3x3 convolutions, and single convolutions.

    Blocks have the names of ResNet-101's, since the stages have as many. ``res5c`` stands for
    ``res5c_branch1b``, ``res5c_branch2b`` and ``res5c_branch2c``. The paper deforms the last three
    convolutions larger than 1x1 and does not say which these are here; in depth they are those of ``res5c``.
    """
    blocks = (name for names in stage_block_names("resnet101").values() for name in names)
    names: dict[str, tuple[str, ...]] = {}
    for block in blocks:
        each = tuple(f"{block}_{convolution}" for convolution in CONVOLUTIONS)
        names |= {block: each, **{name: (name,) for name in each}}
    return names


def channels_of(convolution: str, width: int) -> int:
    """Returns the channels of a 3x3 convolution, named as in :func:`deformable_names`."""
    stage = int(convolution.removeprefix("res")[0])
    channels = width * 2 ** (stage - 2)
    return channels if convolution.endswith("branch1b") else channels // 2


class Branch(nn.Module):
    """1x1, then 3x3 convolutions, with normalization and ReLU between them; the first or second has the stride."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        convolutions: tuple[Conv3x3, ...],
        *,
        stride: int,
        dilation: int,
        stride_on_3x3: bool,
        norm: Norm,
    ) -> None:
        super().__init__()
        stride_1x1, stride_3x3 = (1, stride) if stride_on_3x3 else (stride, 1)
        layers: list[nn.Module] = [conv(in_channels, channels, 1, stride_1x1)]
        for index, make in enumerate(convolutions):
            layers += [
                norm(channels),
                nn.ReLU(inplace=True),
                make(channels, channels, stride_3x3 if index == 0 else 1, dilation),
            ]
        self.layers = nn.Sequential(*layers)
        self.conv_norms = tuple((f"layers.{i}", f"layers.{i + 1}") for i in range(0, len(layers) - 1, 3))

    def forward(self, x: Tensor) -> Tensor:
        for i in range(0, len(self.layers) - 1, 3):
            x = conv_norm(self.layers[i], self.layers[i + 1], x)
        out: Tensor = self.layers[-1](x)
        return out


class AlignedInceptionBlock(nn.Module):
    """Two branches of one and two 3x3 convolutions, joined by a 1x1 convolution, and a shortcut.

    The first branch has ``channels`` channels, the second half as many; the output has four times ``channels``.
    """

    expansion = 4
    conv_norms = (("conv", "bn2"),)

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        stride: int,
        dilation: int,
        stride_on_3x3: bool,
        norm: Norm,
        convolutions: tuple[Conv3x3, Conv3x3, Conv3x3],
    ) -> None:
        super().__init__()
        branch = partial(Branch, in_channels, stride=stride, dilation=dilation, stride_on_3x3=stride_on_3x3, norm=norm)
        joined, out_channels = channels + channels // 2, channels * self.expansion
        self.branch1 = branch(channels, convolutions[:1])
        self.branch2 = branch(channels // 2, convolutions[1:])
        self.bn1 = norm(joined)
        self.conv = conv(joined, out_channels, 1)
        self.bn2 = norm(out_channels)
        self.downsample = shortcut(in_channels, out_channels, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        x = torch.cat([self.branch1(x), self.branch2(x)], dim=1)
        return conv_norm(self.conv, self.bn2, F.relu(self.bn1(x), inplace=True), add=identity)


class AlignedInceptionResNet(ResidualBackbone):
    """Aligned-Inception-ResNet without its classifier, with dilated and deformable convolutions.

    Feature maps have the names, channels and strides of ResNet-101's, so that it can replace ResNet-101 in every
    detector.

    Args:
        kind: ``aligned_inception_resnet``.
        width: channels of the first branch in res2, an even number; later stages double it.
        stride_on: ``3x3``, as in the re-implementation, by default; ``first_1x1`` is the Caffe layout of ResNets.
        stem_pool: ``pad``, the aligned one, by default.
        **options: see :class:`ResidualBackbone`. ``deform.blocks``: blocks or single convolutions, see
            :func:`deformable_names`.

    Raises:
        ValueError: a name, the width or the dilations do not fit.
    """

    def __init__(
        self,
        kind: str = KIND,
        *,
        width: int = 64,
        stride_on: Literal["first_1x1", "3x3"] = "3x3",
        stem_pool: Literal["ceil", "pad"] = "pad",
        **options: Any,
    ) -> None:
        if width % 2:
            raise ValueError(f"width {width} is odd; the second branch has half of it")
        super().__init__(kind, width=width, stride_on=stride_on, stem_pool=stem_pool, **options)

    @classmethod
    def depths(cls, kind: str) -> tuple[int, int, int, int]:
        return DEPTHS["resnet101"]

    @classmethod
    def expansion_of(cls, kind: str) -> int:
        return AlignedInceptionBlock.expansion

    @classmethod
    def deformable_channels(cls, kind: str, width: int) -> dict[str, int]:
        return {name: min(channels_of(each, width) for each in convs) for name, convs in deformable_names().items()}

    def make_block(
        self, stage: str, position: int, in_channels: int, channels: int, stride: int, dilation: int
    ) -> nn.Module:
        known = deformable_names()
        deformed = {convolution for name in self.deform.blocks for convolution in known[name]}

        def conv3x3(name: str) -> Conv3x3:
            return partial(deformable3x3, self.deform) if name in deformed else plain3x3

        first, second, third = (conv3x3(name) for name in known[stage_block_names("resnet101")[stage][position]])
        return AlignedInceptionBlock(
            in_channels,
            channels,
            stride=stride,
            dilation=dilation,
            stride_on_3x3=self.stride_on == "3x3",
            norm=self._norm,
            convolutions=(first, second, third),
        )
