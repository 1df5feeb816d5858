"""RoI max pooling: public function, module and dispatch rules."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dcn_det.ops import library
from dcn_det.ops.reference import roi_pooling as reference
from dcn_det.ops.roi_checks import Checker, coordinate_dtype


def roi_pool(input: Tensor, rois: Tensor, *, spatial_scale: float, pooled_size: int) -> Tensor:
    """Pools regions of a feature map into bins, each the maximum of its cells.

    Source: Girshick, "Fast R-CNN" (2015), section 2.1. Corners are scaled and rounded to cells (halves away
    from zero). Both corners belong to the region, which spans at least one cell along each axis. Bins may share
    cells; a bin outside the map is 0. The first of equal values receives the gradient. The results are those of
    ``torchvision.ops.roi_pool``, which also takes corners as inclusive, except that a NaN in a bin is its
    maximum.

    Args:
        input: (B, C, H, W), float32, float64, float16 or bfloat16.
        rois: (R, 5) rows of (image index, x1, y1, x2, y2) in image pixels, with inclusive corners: subtract 1
            from x2 and y2 of half-open boxes.
        spatial_scale: cells per pixel: 1 / stride of the feature map.
        pooled_size: number of bins along each axis.

    Returns:
        (R, C, pooled_size, pooled_size), in the input's dtype.

    Raises:
        ValueError: if an argument is invalid; the message gives its name, its value and what was expected.

    Dtypes of regions, autocast, non-finite regions, image indices outside the batch, and determinism are
    handled as in :func:`dcn_det.ops.deform_psroi_pool`. The gradient reaches the input only and cannot be
    differentiated again.
    """
    _check(input, rois, spatial_scale, pooled_size)
    output, _ = OPERATOR(input, rois.to(coordinate_dtype(input)), spatial_scale, pooled_size)
    return output


class RoIPool(nn.Module):
    """Module form of :func:`roi_pool`, with the same arguments."""

    def __init__(self, *, spatial_scale: float, pooled_size: int) -> None:
        super().__init__()
        self.spatial_scale, self.pooled_size = spatial_scale, pooled_size

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        """Returns (R, C, pooled_size, pooled_size)."""
        return roi_pool(input, rois, spatial_scale=self.spatial_scale, pooled_size=self.pooled_size)

    def extra_repr(self) -> str:
        return f"spatial_scale={self.spatial_scale}, pooled_size={self.pooled_size}"


def _check(input: Tensor, rois: Tensor, spatial_scale: float, pooled_size: int) -> Checker:
    check = Checker("roi_pool")
    check.sizes(pooled_size=pooled_size)
    check.scales(spatial_scale)
    check.features(input)
    check.rois(rois, input)
    return check


def _fake(input: Tensor, rois: Tensor, spatial_scale: float, pooled_size: int) -> tuple[Tensor, Tensor]:
    _check(input, rois, spatial_scale, pooled_size).cast_coordinates(input, rois=rois)
    output = input.new_empty(rois.shape[0], input.shape[1], pooled_size, pooled_size)
    return output, torch.empty_like(output, dtype=torch.int32)


def _fake_backward(grad_output: Tensor, rois: Tensor, argmax: Tensor, batch: int, height: int, width: int) -> Tensor:
    Checker("roi_pool_backward").grad(grad_output, rois, argmax=argmax)
    return grad_output.new_empty(batch, grad_output.shape[1], height, width)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    input, rois, _, _ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # zeros for argmax would cost a third of the work
    ctx.options = (input.shape[0], *input.shape[2:])
    ctx.save_for_backward(rois, output[1])


_backward = library.input_gradient("roi_pool")
OPERATOR = library.register(
    "roi_pool",
    plain=reference.roi_pool,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
    autocast=("input",),
)
library.register_backward("roi_pool", plain=reference.roi_pool_backward, fake=_fake_backward)
