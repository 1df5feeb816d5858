"""Reading of the offsets that the deformable convolutions of a network predict."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dcn_det.models.detector import Detector
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
    """

    name: str
    layer: DeformConv2d
    offset: Tensor
    mask: Tensor | None

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


def deformable_layers(model: nn.Module) -> dict[str, DeformConv2d]:
    """Returns the deformable convolutions of a network by name, in the order of its modules.

    Names are those in the detector, even if it is wrapped, such as by ``DistributedDataParallel``.
    """
    inner = next((module for module in model.modules() if isinstance(module, Detector)), model)
    return {name: module for name, module in inner.named_modules() if isinstance(module, DeformConv2d)}


@contextmanager
def reading_offsets(model: nn.Module, visit: Callable[[Offsets], None]) -> Iterator[None]:
    """Calls ``visit`` after every call of a deformable convolution inside the block, by forward hooks.

    A layer that is shared by the levels of a pyramid is called once per level. Offsets are computed again from the
    layer's input, without gradients, so neither results nor gradients change. While the hooks are registered, a
    :class:`dcn_det.models.folded.Folding` uses the network itself. A network that ``torch.compile`` has compiled before
    may not run them.

    Args:
        model: a network, which may be wrapped, in training or evaluation mode.
        visit: receives the offsets; ``readings.append`` collects those of all calls in a list.
    """
    handles = [layer.register_forward_hook(_hook(name, visit)) for name, layer in deformable_layers(model).items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(name: str, visit: Callable[[Offsets], None]) -> Callable[..., None]:
    def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(layer, DeformConv2d)
        with torch.no_grad():
            visit(Offsets(name, layer, *layer.sampling(inputs[0])))

    return hook
