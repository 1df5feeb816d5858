"""Aligned-Inception-ResNet, the second backbone of Dai et al. (ICCV 2017, appendix).

Every convolution and pooling is padded, so that the cells of a feature map lie at the centres of their receptive
fields, and all stages repeat one block. The paper gives the widths and depths of the stages (those of ResNet-101)
and the number of parameters, 64.3 M with the classifier; the inside of a block is only in a figure. The block here
is the one of the public re-implementation by soeaver (pytorch-priv), whose count agrees with the paper's.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from dcn_det.models.backbones.convolution import Conv3x3, DeformableBlocks, conv, deformable3x3, plain3x3
from dcn_det.models.backbones.residual import ResidualBackbone, res5_dilations, shortcut
from dcn_det.models.backbones.resnet import DEPTHS, stage_block_names
from dcn_det.models.norm import Norm, norm_factory

KIND = "aligned_inception_resnet"
CONVOLUTIONS = ("branch1b", "branch2b", "branch2c")
"""The 3x3 convolutions of a block: the one of the first branch and the two of the second."""
IMAGENET_CLASSES = 1000


def deformable_names() -> dict[str, tuple[str, ...]]:
    """What may be deformable: each block, which stands for its three 3x3 convolutions, and each of these.

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
    """Channels of a 3x3 convolution, named as in :func:`deformable_names`, in a network of this width."""
    stage = int(convolution.removeprefix("res")[0])
    channels = width * 2 ** (stage - 2)
    return channels if convolution.endswith("branch1b") else channels // 2


class Branch(nn.Module):
    """1x1, then 3x3 convolutions, with normalisation and ReLU between them; the stride is on the first or second."""

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

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


class AlignedInceptionBlock(nn.Module):
    """Two branches of one and two 3x3 convolutions, joined by a 1x1 convolution, and a shortcut.

    The first branch has ``channels`` channels, the second half as many; the block puts out four times
    ``channels``.
    """

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
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(in_channels, out_channels, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        x = torch.cat([self.branch1(x), self.branch2(x)], dim=1)
        x = self.bn2(self.conv(self.relu(self.bn1(x))))
        x += identity
        return self.relu(x)


class AlignedInceptionResNet(ResidualBackbone):
    """Aligned-Inception-ResNet without its classifier, with dilated and deformable convolutions.

    As in :class:`dcn_det.models.backbones.resnet.ResNet`, the defaults keep res5 at stride 16, dilate its
    convolutions larger than 1x1 by 2, and do not train batch norm, stem and res2. Feature maps and their
    channels have the names and sizes of ResNet-101's, so every detector takes it in ResNet-101's place.

    Args:
        width: channels of the first branch in res2, an even number; later stages double it.
        stem_width: channels of the first convolution.
        stride_on: which convolution of each branch carries the stride: the 1x1, as the paper's text has it
            ("dimension changes use a 1x1 convolution of stride 2"), or the first 3x3, as the re-implementation.
        stem_pool: 3x3 stride-2 max pooling padded by one, which is the aligned one, or unpadded with ceil
            rounding.
        norm, norm_eps: see :func:`dcn_det.models.norm.norm_factory`.
        frozen_stages: this many leading stages are not trained, 0 to 5.
        res5_stride: 1 or 2.
        res5_dilation: of the 3x3 convolutions of res5, for all or one for each of its blocks.
        deformable: blocks or single convolutions, named as in :func:`deformable_names`.

    Raises:
        ValueError: a name, the width or the dilations do not fit.
    """

    def __init__(
        self,
        *,
        width: int = 64,
        stem_width: int = 64,
        stride_on: Literal["first_1x1", "3x3"] = "first_1x1",
        stem_pool: Literal["ceil", "pad"] = "pad",
        norm: Literal["frozen_bn", "bn", "sync_bn", "gn"] = "frozen_bn",
        norm_eps: float = 1e-5,
        frozen_stages: int = 2,
        res5_stride: Literal[1, 2] = 1,
        res5_dilation: int | tuple[int, ...] = 2,
        deformable: DeformableBlocks | None = None,
    ) -> None:
        deform = deformable or DeformableBlocks()
        known = deformable_names()
        unknown = [name for name in deform.names if name not in known]
        if unknown:
            raise ValueError(f"{KIND} has no blocks or convolutions {unknown}")
        if width % 2:
            raise ValueError(f"width {width} is odd; the second branch has half of it")
        deformed = {convolution for name in deform.names for convolution in known[name]}
        blocks = stage_block_names("resnet101")
        dilations = res5_dilations(KIND, res5_dilation, len(blocks["res5"]))
        make_norm = norm_factory(norm, norm_eps)

        def conv3x3(name: str) -> Conv3x3:
            return partial(deformable3x3, deform) if name in deformed else plain3x3

        def make_block(stage: str, position: int, in_channels: int, channels: int, stride: int) -> nn.Module:
            first, second, third = (conv3x3(name) for name in known[blocks[stage][position]])
            return AlignedInceptionBlock(
                in_channels,
                channels,
                stride=stride,
                dilation=dilations[position] if stage == "res5" else 1,
                stride_on_3x3=stride_on == "3x3",
                norm=make_norm,
                convolutions=(first, second, third),
            )

        super().__init__(
            make_block,
            DEPTHS["resnet101"],
            expansion=AlignedInceptionBlock.expansion,
            width=width,
            stem_width=stem_width,
            stem_pool=stem_pool,
            norm=make_norm,
            frozen_stages=frozen_stages,
            res5_stride=res5_stride,
            offset_lr_mult=deform.lr_mult,
        )


def imagenet_parameters() -> int:
    """Parameters of the classification network: weights, affine of batch norm, and the 1000-way classifier."""
    with torch.device("meta"):
        backbone = AlignedInceptionResNet(norm="bn", frozen_stages=0, res5_stride=2, res5_dilation=1)
        classifier = nn.Linear(backbone.channels["res5"], IMAGENET_CLASSES)
    return sum(each.numel() for part in (backbone, classifier) for each in part.parameters())
