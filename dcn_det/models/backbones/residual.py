"""Base class of residual backbones: a stem, four stages of blocks, and frozen stages."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from dcn_det.models.backbones.convolution import DeformableBlocks, conv, conv_norm, offset_lr_multipliers
from dcn_det.models.norm import Norm, norm_factory

STAGES = ("res2", "res3", "res4", "res5")


class Shortcut(nn.Sequential):
    """A 1x1 convolution with normalization."""

    conv_norms = (("0", "1"),)

    def forward(self, x: Tensor) -> Tensor:
        return conv_norm(self[0], self[1], x, relu=False)


def shortcut(in_channels: int, out_channels: int, stride: int, norm: Norm) -> nn.Module | None:
    """Returns a :class:`Shortcut`, or None where the input already fits."""
    if stride == 1 and in_channels == out_channels:
        return None
    return Shortcut(conv(in_channels, out_channels, 1, stride), norm(out_channels))


class ResidualBackbone(nn.Module, ABC):
    """7x7 stride-2 stem, 3x3 stride-2 max pooling, four stages of residual blocks.

    Subclasses define the depths of the stages and create the blocks. The defaults are the authors' backbone: stride on
    the first 1x1, unpadded ceil-mode pooling, res5 at stride 16 with dilation 2, constant batch norm, frozen stem and
    res2. Convolutions have He's normal initialization (fan out), offsets are initially zero.

    Args:
        kind: name of the network, such as ``resnet101``.
        width: channels of the 3x3 convolutions of res2 (of the wider branch); each later stage doubles it, and blocks
            may output a multiple.
        stem_width: channels of the first convolution.
        stride_on: convolution of a bottleneck or branch that carries the stride: the first 1x1 (Caffe) or the first 3x3
            (torchvision).
        stem_pool: 3x3 stride-2 max pooling: ``ceil``, unpadded with ceil rounding (Caffe), or ``pad``, padded by 1
            with floor rounding (torchvision).
        norm, norm_eps: see :func:`dcn_det.models.norm.norm_factory`.
        frozen_stages: number of leading stages with constant parameters and statistics: 1 for the stem, 2 for stem and
            res2, up to 5.
        res5_stride: 1 for an output at stride 16, 2 for stride 32.
        res5_dilation: dilation of the 3x3 convolutions of res5, one number or one per block.
        deform: deformable blocks; none by default.

    Attributes:
        channels: of each stage's output, by name.
        strides: of each stage's output, in input pixels, by name.

    Raises:
        ValueError: a block is unknown, or the dilations do not fit.
    """

    conv_norms = (("conv1", "bn1"),)

    def __init__(
        self,
        kind: str,
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
        deform: DeformableBlocks | None = None,
    ) -> None:
        super().__init__()
        self.kind = kind
        self.stride_on = stride_on
        self.deform = deform or DeformableBlocks()
        known = self.deformable_channels(kind, width)
        unknown = [name for name in self.deform.blocks if name not in known]
        if unknown:
            raise ValueError(f"{kind} has no blocks {unknown}")
        depths = self.depths(kind)
        dilations = {"res5": _per_block(kind, res5_dilation, depths[-1])}
        self._norm = norm_factory(norm, norm_eps)
        self.recomputed: frozenset[str] = frozenset()
        """Stages whose blocks are recomputed in the backward pass; see :meth:`recompute`."""

        self.conv1 = conv(3, stem_width, 7, stride=2)
        self.bn1 = self._norm(stem_width)
        self.maxpool = nn.MaxPool2d(3, 2, ceil_mode=True) if stem_pool == "ceil" else nn.MaxPool2d(3, 2, padding=1)

        self.channels: dict[str, int] = {}
        self.strides: dict[str, int] = {}
        in_channels, total_stride, expansion = stem_width, 4, self.expansion_of(kind)
        for index, (stage, depth, stage_stride) in enumerate(zip(STAGES, depths, (1, 2, 2, res5_stride))):
            channels = width * 2**index
            blocks = []
            for position in range(depth):
                dilation = dilations[stage][position] if stage in dilations else 1
                stride = stage_stride if position == 0 else 1
                blocks.append(self.make_block(stage, position, in_channels, channels, stride, dilation))
                in_channels = channels * expansion
            self.add_module(f"layer{index + 1}", nn.Sequential(*blocks))
            total_stride *= stage_stride
            self.channels[stage], self.strides[stage] = in_channels, total_stride

        stages = [[self.conv1, self.bn1], *([stage] for stage in self._layers())]
        self._frozen = [module for stage in stages[:frozen_stages] for module in stage]
        for module in self._frozen:
            module.requires_grad_(False)

    @classmethod
    @abstractmethod
    def depths(cls, kind: str) -> tuple[int, int, int, int]:
        """Returns the number of blocks of each stage."""

    @classmethod
    @abstractmethod
    def expansion_of(cls, kind: str) -> int:
        """Returns the output channels of a block, as a multiple of its ``channels``."""

    @classmethod
    @abstractmethod
    def deformable_channels(cls, kind: str, width: int) -> dict[str, int]:
        """Returns valid names in ``deform.blocks``, with the channels that their offset groups must divide."""

    @abstractmethod
    def make_block(
        self, stage: str, position: int, in_channels: int, channels: int, stride: int, dilation: int
    ) -> nn.Module:
        """Creates the residual block at a position of a stage.

        It has ``expansion_of(kind) * channels`` outputs. The last pair of its ``conv_norms`` is the
        convolution and the normalization whose output is added to the shortcut.
        """

    def _layers(self) -> list[nn.Module]:
        return [self.get_submodule(f"layer{index}") for index in range(1, 5)]

    def train(self, mode: bool = True) -> ResidualBackbone:
        """Sets the mode; frozen stages stay in evaluation mode, so that the statistics of batch norm do not change."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def recompute(self, stages: Sequence[str]) -> None:
        """Recomputes the activations inside the blocks of some stages in the backward pass instead of keeping them.

        This saves memory and costs time; results do not change.

        Args:
            stages: some of ``res2`` ... ``res5``; replaces those of earlier calls.
        """
        unknown = [stage for stage in stages if stage not in STAGES]
        if unknown:
            raise ValueError(f"no stage {unknown[0]!r}; expected some of {', '.join(STAGES)}")
        self.recomputed = frozenset(stages)

    def zero_init_residual(self) -> None:
        """Sets the scale of the last normalization of each block to 0: blocks start as their shortcuts.

        Deep networks are easier to train from scratch then (Goyal et al., 2017).
        """
        for layer in self._layers():
            for block in layer.children():
                pairs: Any = block.conv_norms
                nn.init.zeros_(block.get_parameter(f"{pairs[-1][1]}.weight"))

    def lr_multipliers(self) -> dict[str, float]:
        """Returns learning-rate multipliers other than 1, by parameter name."""
        return offset_lr_multipliers(self, self.deform)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Maps normalized images (B, 3, H, W) to outputs of ``res2`` ... ``res5``, each (B, channels, h, w)."""
        x = self.maxpool(conv_norm(self.conv1, self.bn1, x))
        features = {}
        for stage, layer in zip(STAGES, self._layers()):
            if stage in self.recomputed and torch.is_grad_enabled():
                for block in layer.children():
                    contexts = partial(_contexts, block)
                    x = checkpoint(block, x, use_reentrant=False, preserve_rng_state=True, context_fn=contexts)
            else:
                x = layer(x)
            features[stage] = x
        return features


def _contexts(block: nn.Module) -> tuple[contextlib.AbstractContextManager, contextlib.AbstractContextManager]:
    return contextlib.nullcontext(), _statistics_held(block)


@contextlib.contextmanager
def _statistics_held(block: nn.Module) -> Iterator[None]:
    """Restores the running statistics of batch norm, which already include the batch."""
    norms = [m for m in block.modules() if isinstance(m, _BatchNorm) and m.training]
    statistics = [dict(norm.named_buffers()) for norm in norms]
    for norm, own in zip(norms, statistics):
        for name, buffer in own.items():
            setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        for norm, own in zip(norms, statistics):
            for name, buffer in own.items():
                setattr(norm, name, buffer)


def _per_block(kind: str, dilation: int | tuple[int, ...], depth: int) -> tuple[int, ...]:
    """Returns one dilation per block of res5."""
    if isinstance(dilation, int):
        return (dilation,) * depth
    if len(dilation) != depth:
        raise ValueError(f"{kind} has {depth} blocks in res5, got dilations {dilation}")
    return dilation
