"""Position-sensitive RoI pooling: public function, module and dispatch rules."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from dcn_det.ops import library
from dcn_det.ops.reference import roi_pooling as reference
from dcn_det.ops.roi_checks import Checker, coordinate_dtype


def psroi_pool(
    input: Tensor, rois: Tensor, *, spatial_scale: float, output_dim: int, group_size: int, pooled_size: int
) -> Tensor:
    """Pools regions of a position-sensitive feature map into bins, each the mean of the cells it touches.

    Source: Dai et al., "R-FCN" (2016), section 2, as in the authors' released code: the corners are rounded
    (halves away from zero), the bottom-right corner is moved to its outer edge (+ 1), and both are scaled; a
    region spans at least 0.1 cells. Along each axis, bin i covers the cells of the map from ``floor(start + i *
    extent)`` up to, but excluding, ``ceil(start + (i + 1) * extent)``, with ``extent`` that of a bin. An empty
    bin is 0. (``torchvision.ops.ps_roi_pool`` rounds differently.)

    Args:
        input: (B, output_dim * group_size ** 2, H, W), float32, float64, float16 or bfloat16. Channel
            ``(o * group_size + i) * group_size + j`` feeds output channel o in the bins of row group i and
            column group j.
        rois: (R, 5) rows of (image index, x1, y1, x2, y2) in image pixels, with inclusive corners: subtract 1
            from x2 and y2 of half-open boxes.
        spatial_scale: cells per pixel: 1 / stride of the feature map.
        output_dim: number of output channels.
        group_size: number of groups of bins along each axis.
        pooled_size: number of bins along each axis.

    Returns:
        (R, output_dim, pooled_size, pooled_size), in the input's dtype.

    Raises:
        ValueError: if an argument is invalid; the message gives its name, its value and what was expected.

    Dtypes of regions, autocast, non-finite regions, image indices outside the batch, and determinism are
    handled as in :func:`dcn_det.ops.deform_psroi_pool`. The gradient reaches the input only and cannot be
    differentiated again.
    """
    _check(input, rois, spatial_scale, output_dim, group_size, pooled_size)
    return OPERATOR(input, rois.to(coordinate_dtype(input)), spatial_scale, output_dim, group_size, pooled_size)


class PSRoIPool(nn.Module):
    """Module form of :func:`psroi_pool`, with the same arguments."""

    def __init__(self, *, spatial_scale: float, output_dim: int, group_size: int, pooled_size: int) -> None:
        super().__init__()
        self.spatial_scale = spatial_scale
        self.output_dim, self.group_size, self.pooled_size = output_dim, group_size, pooled_size

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        """Returns (R, output_dim, pooled_size, pooled_size)."""
        return psroi_pool(
            input,
            rois,
            spatial_scale=self.spatial_scale,
            output_dim=self.output_dim,
            group_size=self.group_size,
            pooled_size=self.pooled_size,
        )

    def extra_repr(self) -> str:
        names = ("spatial_scale", "output_dim", "group_size", "pooled_size")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)


def _check(
    input: Tensor, rois: Tensor, spatial_scale: float, output_dim: int, group_size: int, pooled_size: int
) -> Checker:
    check = Checker("psroi_pool")
    check.sizes(output_dim=output_dim, group_size=group_size, pooled_size=pooled_size)
    check.scales(spatial_scale)
    check.features(input, output_dim * group_size**2, "output_dim * group_size ** 2")
    check.rois(rois, input)
    return check


def _fake(
    input: Tensor, rois: Tensor, spatial_scale: float, output_dim: int, group_size: int, pooled_size: int
) -> Tensor:
    check = _check(input, rois, spatial_scale, output_dim, group_size, pooled_size)
    check.cast_coordinates(input, rois=rois)
    return input.new_empty(rois.shape[0], output_dim, pooled_size, pooled_size)


def _fake_backward(
    grad_output: Tensor,
    rois: Tensor,
    batch: int,
    height: int,
    width: int,
    spatial_scale: float,
    group_size: int,
) -> Tensor:
    Checker("psroi_pool_backward").grad(grad_output, rois)
    return grad_output.new_empty(batch, grad_output.shape[1] * group_size**2, height, width)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, rois, spatial_scale, _, group_size, _ = inputs
    ctx.options = (input.shape[0], *input.shape[2:], spatial_scale, group_size)
    ctx.save_for_backward(rois)


_backward = library.input_gradient("psroi_pool")
OPERATOR = library.register(
    "psroi_pool",
    plain=reference.psroi_pool,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
    autocast=("input",),
)
library.register_backward("psroi_pool", plain=reference.psroi_pool_backward, fake=_fake_backward)
