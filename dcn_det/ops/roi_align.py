"""RoI align: public function, module and dispatch rules."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from dcn_det.ops import library
from dcn_det.ops.reference import roi_align as reference
from dcn_det.ops.roi_checks import LARGEST_SIZE, Checker, coordinate_dtype


def roi_align(
    input: Tensor,
    rois: Tensor,
    *,
    spatial_scale: float,
    pooled_size: int,
    sampling_ratio: int = 0,
    aligned: bool = True,
) -> Tensor:
    """Pools regions of a feature map into bins, each the mean of bilinear samples.

    Source: He et al., "Mask R-CNN" (2017), section 3. Coordinates are not rounded: a region spans ``[x1 *
    spatial_scale - s, x2 * spatial_scale - s)`` in cells, with s = 0.5 if ``aligned``, else 0. A bin is divided
    into equal parts and sampled at their centers. Samples at most one cell beyond the outermost cells are
    clamped to the map; those farther out count as zeros. The results are those of
    ``torchvision.ops.roi_align``, which has another default for ``aligned``.

    Args:
        input: (B, C, H, W), float32, float64, float16 or bfloat16.
        rois: (R, 5) rows of (image index, x1, y1, x2, y2) in image pixels, half-open: the width is ``x2 - x1``.
            Unlike the other RoI pooling operators, this one takes half-open boxes unchanged.
        spatial_scale: cells per pixel: 1 / stride of the feature map.
        pooled_size: number of bins along each axis.
        sampling_ratio: number of samples along each axis of a bin; 0 for the number of cells that the bin
            spans, rounded up, which depends on the region.
        aligned: whether the center of the first cell lies half a cell inside the map's edge, as in images.
            If False, it lies on the edge, as in the first implementations, and a region spans at least one cell.

    Returns:
        (R, C, pooled_size, pooled_size), in the input's dtype.

    Raises:
        ValueError: if an argument is invalid; the message gives its name, its value and what was expected.

    Dtypes of regions, autocast, non-finite regions, image indices outside the batch, and determinism are
    handled as in :func:`dcn_det.ops.deform_psroi_pool`. The gradient reaches the input only and cannot be
    differentiated again.
    """
    _check(input, rois, spatial_scale, pooled_size, sampling_ratio)
    return OPERATOR(input, rois.to(coordinate_dtype(input)), spatial_scale, pooled_size, sampling_ratio, aligned)


class RoIAlign(nn.Module):
    """Module form of :func:`roi_align`, with the same arguments."""

    def __init__(
        self, *, spatial_scale: float, pooled_size: int, sampling_ratio: int = 0, aligned: bool = True
    ) -> None:
        super().__init__()
        self.spatial_scale, self.pooled_size = spatial_scale, pooled_size
        self.sampling_ratio, self.aligned = sampling_ratio, aligned

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        """Returns (R, C, pooled_size, pooled_size)."""
        return roi_align(
            input,
            rois,
            spatial_scale=self.spatial_scale,
            pooled_size=self.pooled_size,
            sampling_ratio=self.sampling_ratio,
            aligned=self.aligned,
        )

    def extra_repr(self) -> str:
        names = ("spatial_scale", "pooled_size", "sampling_ratio", "aligned")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)


def _check(input: Tensor, rois: Tensor, spatial_scale: float, pooled_size: int, sampling_ratio: int) -> Checker:
    check = Checker("roi_align")
    check.sizes(pooled_size=pooled_size)
    if not isinstance(sampling_ratio, int) or not 0 <= sampling_ratio <= LARGEST_SIZE:
        raise check.error("sampling_ratio", repr(sampling_ratio), f"an int from 0 to {LARGEST_SIZE}")
    check.scales(spatial_scale)
    check.features(input)
    check.rois(rois, input)
    return check


def _fake(
    input: Tensor, rois: Tensor, spatial_scale: float, pooled_size: int, sampling_ratio: int, aligned: bool
) -> Tensor:
    _check(input, rois, spatial_scale, pooled_size, sampling_ratio).cast_coordinates(input, rois=rois)
    return input.new_empty(rois.shape[0], input.shape[1], pooled_size, pooled_size)


def _fake_backward(grad_output: Tensor, rois: Tensor, batch: int, height: int, width: int, *options: Any) -> Tensor:
    Checker("roi_align_backward").grad(grad_output, rois)
    return grad_output.new_empty(batch, grad_output.shape[1], height, width)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, rois, spatial_scale, _, *options = inputs
    ctx.options = (input.shape[0], *input.shape[2:], spatial_scale, *options)
    ctx.save_for_backward(rois)


_backward = library.input_gradient("roi_align")
OPERATOR = library.register(
    "roi_align",
    plain=reference.roi_align,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
    autocast=("input",),
)
library.register_backward("roi_align", plain=reference.roi_align_backward, fake=_fake_backward)
