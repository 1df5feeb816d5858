"""Reading of the offsets that the deformable convolutions and the deformable RoI pooling of a network predict."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dcn_det.models.detector import Detector
from dcn_det.models.heads.roi_head import RoIHead
from dcn_det.ops import DeformConv2d


@dataclass(frozen=True, slots=True)
class Offsets:
    """Prediction of one deformable convolution in one call.

    Attributes:
        name: of the layer in the detector, such as ``backbone.layer4.2.conv2``.
        layer: the layer.
        offset: (N, 2 * offset_groups * kh * kw, H_out, W_out), in cells of the layer's input and in the layout of
            :func:`dcn_det.ops.deform_conv2d`; detached, in the dtype of the offset branch, also under autocast.
        mask: (N, offset_groups * kh * kw, H_out, W_out), from 0 to ``layer.mask_scale``; None if not modulated.
        input_size: height and width of the layer's input.
    """

    name: str
    layer: DeformConv2d
    offset: Tensor
    mask: Tensor | None
    input_size: tuple[int, int]

    def points(self) -> Tensor:
        """Computes the sampling points of all filters.

        Returns:
            (N, offset_groups, kh, kw, 2, H_out, W_out), y and x in cells of the layer's input; integers are centers of
            cells. A coordinate of half precision is returned in float32.
        """
        layer, (count, _, height, width) = self.layer, self.offset.shape
        dtype = torch.promote_types(self.offset.dtype, torch.float32)
        points = self.offset.reshape(count, layer.offset_groups, *layer.kernel_size, 2, height, width).to(dtype)

        def steps(number: int, step: int, start: int = 0) -> Tensor:
            return start + step * torch.arange(number, device=points.device, dtype=dtype)

        taps = [steps(number, step) for number, step in zip(layer.kernel_size, layer.dilation)]
        filters = [
            steps(number, step, -padding) for number, step, padding in zip((height, width), layer.stride, layer.padding)
        ]
        y = taps[0].view(-1, 1, 1, 1) + filters[0].view(-1, 1)
        x = taps[1].view(-1, 1, 1) + filters[1]
        return points + torch.stack(torch.broadcast_tensors(y, x), dim=2)


@dataclass(frozen=True, slots=True)
class BinOffsets:
    """Prediction of deformable RoI pooling in one call: one level of a pyramid, or the scores or the deltas of R-FCN.

    Attributes:
        name: of the head in the detector, such as ``head``.
        head: the head.
        offset: (R, 2 * K, pooled_size, pooled_size), in the layout of :func:`dcn_det.ops.deform_psroi_pool`: x, then y
            of each of K classes, to be multiplied by ``head.offset_std`` and the size of the RoI; detached.
    """

    name: str
    head: RoIHead
    offset: Tensor


def stride_of(input_size: Sequence[int], size: Sequence[int]) -> int:
    """Returns the stride of a map in pixels: the power of two that is nearest to the ratio of sizes, which padding and
    rounding change a little.

    Args:
        input_size: height and width of the network's input.
        size: height and width of the map.
    """
    return int(2 ** round(math.log2(math.prod(input_size) / math.prod(size)) / 2))


def deformable_layers(model: nn.Module) -> dict[str, DeformConv2d]:
    """Returns the deformable convolutions of a network by name, in the order of its modules.

    Names are those in the detector, even if it is wrapped, such as by ``DistributedDataParallel``.
    """
    return {name: module for name, module in _named_modules(model) if isinstance(module, DeformConv2d)}


def _named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    inner = next((module for module in model.modules() if isinstance(module, Detector)), model)
    return inner.named_modules()


@contextmanager
def reading_offsets(model: nn.Module, visit: Callable[[Offsets], None]) -> Iterator[None]:
    """Calls ``visit`` in every call of a deformable convolution inside the block, by hooks on its offset branch.

    A layer that is shared by the levels of a pyramid is called once per level. Neither results nor gradients change.
    While the hooks are registered, a :class:`dcn_det.models.folded.Folding` uses the network itself. A network that
    ``torch.compile`` has compiled before may not run them.

    Args:
        model: a network, which may be wrapped, in training or evaluation mode.
        visit: receives the offsets; ``readings.append`` collects those of all calls in a list.
    """

    def of(name: str, layer: DeformConv2d) -> Callable[..., None]:
        def hook(branch: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            height, width = inputs[0].shape[2:]
            visit(Offsets(name, layer, *layer.split(output.detach()), (height, width)))

        return hook

    layers = deformable_layers(model)
    with _hooked([(layer.offset, of(name, layer)) for name, layer in layers.items()]):
        yield


@contextmanager
def reading_bin_offsets(model: nn.Module, visit: Callable[[BinOffsets], None]) -> Iterator[None]:
    """Calls ``visit`` whenever the second stage of a detector moves bins inside the block; see :func:`reading_offsets`.

    Args:
        model: a network, which may be wrapped, in training or evaluation mode.
        visit: receives the offsets.
    """

    def of(name: str, head: RoIHead) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            visit(BinOffsets(name, head, output.detach()))

        return hook

    heads = [(name, module) for name, module in _named_modules(model) if isinstance(module, RoIHead)]
    with _hooked([(head.bin_offsets, of(name, head)) for name, head in heads]):
        yield


@contextmanager
def _hooked(hooks: Sequence[tuple[nn.Module, Callable[..., None]]]) -> Iterator[None]:
    handles = [module.register_forward_hook(hook) for module, hook in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
