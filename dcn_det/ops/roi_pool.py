"""RoI max pooling: the public function, its module and its dispatch rules."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dcn_det.ops import library
from dcn_det.ops.reference import roi_pooling as reference
from dcn_det.ops.roi_checks import Checker, coordinate_dtype

OPERATOR = torch.ops.dcn_det.roi_pool


def roi_pool(input: Tensor, rois: Tensor, *, spatial_scale: float, pooled_size: int) -> Tensor:
    """Pools regions of a feature map into bins, each the largest value among its cells.

    Source: Girshick, "Fast R-CNN" (2015), section 2.1. Corners are scaled, then rounded to cells, halves
    away from zero, and both belong to the region, which has at least one cell along an axis. Bins may share
    cells; one outside the map is 0. The first of equal values gets the gradient. For the same rows of
    ``rois`` the result is that of ``torchvision.ops.roi_pool``, which takes the corners as inclusive, too;
    unlike there, a NaN among a bin's cells is the result.

    Args:
        input: (B, C, H, W), float32, float64, float16 or bfloat16.
        rois: (R, 5) of (image index, x1, y1, x2, y2), in pixels of the image, both corners inclusive:
            subtract 1 from the x2 and y2 of a half-open box.
        spatial_scale: cells per pixel: 1 / stride of the feature map.
        pooled_size: number of bins along an axis.

    Returns:
        (R, C, pooled_size, pooled_size), the input's dtype.

    Raises:
        ValueError: an argument does not fit; the message tells which, what it is and what was expected.

    Dtypes of regions, autocast, regions that are not finite or of an image that does not exist, and
    determinism are as in :func:`dcn_det.ops.deform_psroi_pool`. The input's gradient is once
    differentiable.
    """
    _check(input, rois, spatial_scale, pooled_size)
    output, _ = OPERATOR(input, rois.to(coordinate_dtype(input)), spatial_scale, pooled_size)
    return output


class RoIPool(nn.Module):
    """:func:`roi_pool` with its sizes fixed; arguments as there."""

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
    Checker("roi_pool_backward").grad(grad_output, rois)
    return grad_output.new_empty(batch, grad_output.shape[1], height, width)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    input, rois, _, _ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # zeros for argmax would take as long as a third of the work
    ctx.options = (input.shape[0], *input.shape[2:])
    ctx.save_for_backward(rois, output[1])


_backward = library.input_gradient("roi_pool")
library.register(
    "roi_pool",
    plain=reference.roi_pool,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
    autocast=("input",),
)
library.register_backward("roi_pool", plain=reference.roi_pool_backward, fake=_fake_backward)
