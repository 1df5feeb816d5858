"""Parameters, multiply-adds and memory of a model, counted on the meta device, where tensors have no values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dcn_det.models.detector import Work
from dcn_det.models.norm import FrozenBatchNorm2d
from dcn_det.ops import DeformConv2d
from dcn_det.ops.flops import flop_counter


@dataclass(frozen=True)
class ModelInfo:
    """Size and cost of a model.

    Attributes:
        parameters: by part (``backbone``, ``rpn``, ``head``): all weights, including constant scales and shifts of
            batch norm, without running statistics.
        trainable: parameters that are trained.
        multiply_adds: of one image, by part: products with their additions in convolutions, deformable ones
            included, and in fully connected layers. Sampling, pooling, activations and suppression are not counted.
        activation_bytes: memory per image that a training step keeps for its backward pass, in float32, without losses.
        strides: of the maps that are predicted from, in input pixels.
        deformable: names of the deformable convolutions.
    """

    parameters: dict[str, int]
    trainable: int
    multiply_adds: dict[str, int]
    activation_bytes: int
    strides: tuple[int, ...]
    deformable: tuple[str, ...]


class Countable(Protocol):
    """Interface of a model whose work is counted; see :class:`dcn_det.models.detector.Detector`."""

    preprocess: nn.Module

    def work(self, images: Tensor, rois: int) -> Iterator[Work]: ...

    @property
    def output_strides(self) -> tuple[int, ...]: ...


def model_info(model: Any, height: int, width: int, rois: int) -> ModelInfo:
    """Counts one image of ``height`` x ``width`` pixels, before the padding it needs, with ``rois`` proposals.

    Args:
        model: a :class:`Countable` module, on the meta device.
    """
    counted: Countable = model
    parts = dict(model.named_children())
    saved = _SavedTensors(model)
    flops: dict[str, int] = {}
    with saved.hooks():
        images = counted.preprocess(torch.empty(1, 3, height, width, dtype=torch.uint8, device="meta"), [])
        for name, run in counted.work(images, rois):
            with flop_counter() as counter:
                run()
            flops[name] = counter.get_total_flops()
    return ModelInfo(
        parameters={name: count_parameters(part) for name, part in parts.items() if name in flops},
        trainable=sum(each.numel() for each in model.parameters() if each.requires_grad),
        multiply_adds={name: count // 2 for name, count in flops.items()},
        activation_bytes=saved.bytes,
        strides=counted.output_strides,
        deformable=tuple(name for name, module in model.named_modules() if isinstance(module, DeformConv2d)),
    )


def count_parameters(part: nn.Module) -> int:
    """Counts all weights, including constant scales and shifts of batch norm, without running statistics."""
    constant = [each for each in part.modules() if isinstance(each, FrozenBatchNorm2d)]
    return sum(each.numel() for each in part.parameters()) + sum(2 * len(each.weight) for each in constant)


class _SavedTensors:
    """Sums the memory of the tensors that autograd keeps, counting shared memory once."""

    def __init__(self, model: nn.Module) -> None:
        own = [*model.parameters(), *model.buffers()]
        self._kept: dict[int, torch.UntypedStorage] = {self._key(each): each.untyped_storage() for each in own}
        self.bytes = 0

    @staticmethod
    def _key(tensor: Tensor) -> int:
        return int(tensor.untyped_storage()._cdata)

    def hooks(self) -> torch.autograd.graph.saved_tensors_hooks:
        return torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        if self._key(tensor) not in self._kept:
            # Keeping the storage prevents reuse of its key.
            self._kept[self._key(tensor)] = tensor.untyped_storage()
            self.bytes += tensor.untyped_storage().nbytes()
        return tensor
