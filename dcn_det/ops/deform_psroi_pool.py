"""Deformable position-sensitive RoI pooling: the public function, its module and its dispatch rules."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dcn_det.ops import library
from dcn_det.ops.reference import deform_psroi_pool as reference
from dcn_det.ops.roi_checks import Checker, coordinate_dtype

OPERATOR = torch.ops.dcn_det.deform_psroi_pool


def deform_psroi_pool(
    input: Tensor,
    rois: Tensor,
    trans: Tensor | None = None,
    *,
    spatial_scale: float,
    output_dim: int,
    group_size: int,
    pooled_size: int,
    part_size: int,
    sample_per_part: int,
    trans_std: float,
) -> Tensor:
    """Pools regions of a feature map into bins that offsets move.

    A region is divided into ``pooled_size`` x ``pooled_size`` bins, and a bin is the mean of
    ``sample_per_part`` x ``sample_per_part`` bilinear samples from its top-left corner on. An offset moves
    the bin by ``trans_std`` times the offset times the region's width or height. Source: Dai et al.,
    "Deformable Convolutional Networks" (2017), section 2.2, as in the authors' released code.

    The corners of a region are rounded, halves away from zero, the far ones then moved to their outer edge
    (+ 1), scaled, and shifted by half a cell: a region spans ``[round(x1) * spatial_scale - 0.5, (round(x2)
    + 1) * spatial_scale - 0.5)`` in cells, and at least 0.1 cells. Samples farther than half a cell from
    the map's cells do not count, those within are clamped to them; a bin without a sample that counts is 0.

    Args:
        input: (B, output_dim * group_size ** 2, H, W), float32, float64, float16 or bfloat16. Channel ``(o
            * group_size + i) * group_size + j`` feeds output channel o in the bins of row group i and
            column group j. With ``group_size=1`` all bins read all channels.
        rois: (R, 5) of (image index, x1, y1, x2, y2), in pixels of the image, both corners inclusive:
            subtract 1 from the x2 and y2 of a half-open box.
        trans: (R, 2 * K, part_size, part_size), or None for no offsets. Class u, of the K that divide the
            output channels evenly, is moved by channel 2u along x and channel 2u + 1 along y.
        spatial_scale: cells per pixel: 1 / stride of the feature map.
        output_dim: number of output channels.
        group_size: number of groups of bins along an axis.
        pooled_size: number of bins along an axis.
        part_size: resolution of ``trans`` along an axis; bin i reads part ``i * part_size // pooled_size``.
        sample_per_part: number of samples along an axis of a bin.
        trans_std: factor of the offsets.

    Returns:
        (R, output_dim, pooled_size, pooled_size), the input's dtype.

    Raises:
        ValueError: an argument does not fit; the message tells which, what it is and what was expected.

    Regions and offsets are read in float32, or float64 beside float64 features, under autocast too, which
    casts the features alone. Gradients go to ``input`` and ``trans``, once differentiable: the region gets
    none, and neither does an offset through a sample on a cell or clamped. A region whose coordinates, or
    whose extent in cells, are not finite pools to zero; samples moved by offsets that are not finite do not
    count. An image index is cut to a whole number. A region whose index is outside [0, B) is an error on the
    CPU; where looking would stall the device or break a captured graph, it pools to zero. The result is
    deterministic. On CUDA the input's gradient is summed by atomic additions, in an order that varies, but
    under ``torch.use_deterministic_algorithms(True)`` in fixed point, as by
    :func:`dcn_det.ops.deform_conv2d`.
    """
    _check(
        input, rois, trans, spatial_scale, output_dim, group_size, pooled_size, part_size, sample_per_part, trans_std
    )
    dtype = coordinate_dtype(input)
    if trans is not None:
        trans = trans.to(dtype)
    return OPERATOR(
        input,
        rois.to(dtype),
        trans,
        spatial_scale,
        output_dim,
        group_size,
        pooled_size,
        part_size,
        sample_per_part,
        trans_std,
    )


class DeformPSRoIPool(nn.Module):
    """:func:`deform_psroi_pool` with its sizes fixed; arguments as there."""

    def __init__(
        self,
        *,
        spatial_scale: float,
        output_dim: int,
        group_size: int,
        pooled_size: int,
        part_size: int,
        sample_per_part: int,
        trans_std: float,
    ) -> None:
        super().__init__()
        self.spatial_scale, self.trans_std = spatial_scale, trans_std
        self.output_dim, self.group_size, self.pooled_size = output_dim, group_size, pooled_size
        self.part_size, self.sample_per_part = part_size, sample_per_part

    def forward(self, input: Tensor, rois: Tensor, trans: Tensor | None = None) -> Tensor:
        """Returns (R, output_dim, pooled_size, pooled_size)."""
        return deform_psroi_pool(
            input,
            rois,
            trans,
            spatial_scale=self.spatial_scale,
            output_dim=self.output_dim,
            group_size=self.group_size,
            pooled_size=self.pooled_size,
            part_size=self.part_size,
            sample_per_part=self.sample_per_part,
            trans_std=self.trans_std,
        )

    def extra_repr(self) -> str:
        names = (
            "spatial_scale",
            "output_dim",
            "group_size",
            "pooled_size",
            "part_size",
            "sample_per_part",
            "trans_std",
        )
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)


def _check(
    input: Tensor,
    rois: Tensor,
    trans: Tensor | None,
    spatial_scale: float,
    output_dim: int,
    group_size: int,
    pooled_size: int,
    part_size: int,
    sample_per_part: int,
    trans_std: float,
) -> Checker:
    check = Checker("deform_psroi_pool")
    check.sizes(
        output_dim=output_dim,
        group_size=group_size,
        pooled_size=pooled_size,
        part_size=part_size,
        sample_per_part=sample_per_part,
    )
    check.scales(spatial_scale, trans_std)
    check.features(input, output_dim * group_size**2, "output_dim * group_size ** 2")
    check.rois(rois, input)
    if trans is not None:
        check.trans(trans, rois, input, output_dim, part_size)
    return check


def _fake(input: Tensor, rois: Tensor, trans: Tensor | None, *options: Any) -> Tensor:
    _check(input, rois, trans, *options).cast_coordinates(input, rois=rois, trans=trans)
    _, output_dim, _, pooled_size, *_ = options
    return input.new_empty(rois.shape[0], output_dim, pooled_size, pooled_size)


def _fake_backward(
    grad_output: Tensor, input: Tensor, rois: Tensor, trans: Tensor | None, *options: Any
) -> tuple[Tensor, Tensor]:
    *options_forward, need_input, need_trans = options
    _check(input, rois, trans, *options_forward).grad(grad_output, rois)
    return (
        torch.empty_like(input) if need_input else input.new_empty(0),
        trans.new_empty(trans.shape) if need_trans and trans is not None else rois.new_empty(0),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, rois, trans, *ctx.options = inputs
    ctx.save_for_backward(input, rois, trans)


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    input, rois, trans = ctx.saved_tensors
    need_input, _, need_trans = ctx.needs_input_grad[:3]
    operator = library.backward_operator("deform_psroi_pool", grad_output, need_input)
    grads = operator(grad_output, input, rois, trans, *ctx.options, need_input, need_trans)
    none = [None] * len(ctx.options)
    return grads[0] if need_input else None, None, grads[1] if need_trans else None, *none


library.register(
    "deform_psroi_pool",
    plain=reference.deform_psroi_pool,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
    autocast=("input",),
)
library.register_backward("deform_psroi_pool", plain=reference.deform_psroi_pool_backward, fake=_fake_backward)
