"""Deformable position-sensitive RoI pooling: public function, module and dispatch rules."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from dcn_det.ops import library
from dcn_det.ops.reference import deform_psroi_pool as reference
from dcn_det.ops.roi_checks import Checker, coordinate_dtype

RELEASED_NAMES = {"trans": "offset", "sample_per_part": "samples_per_bin", "trans_std": "offset_std"}
P = ParamSpec("P")
R = TypeVar("R")


def _accept_released_names(function: Callable[P, R]) -> Callable[P, R]:
    """Accepts keyword arguments under their names in the authors' code."""
    parameters = inspect.signature(function).parameters
    names = {old: new for old, new in RELEASED_NAMES.items() if new in parameters}

    @functools.wraps(function)
    def renamed(*args: P.args, **kwargs: P.kwargs) -> R:
        for old, new in names.items():
            if old in kwargs:
                if new in kwargs:
                    raise TypeError(f"{function.__qualname__}() got both {new!r} and its alias {old!r}; expected one")
                kwargs[new] = kwargs.pop(old)
        return function(*args, **kwargs)

    return renamed


@_accept_released_names
def deform_psroi_pool(
    input: Tensor,
    rois: Tensor,
    offset: Tensor | None = None,
    *,
    spatial_scale: float,
    output_dim: int,
    group_size: int,
    pooled_size: int,
    part_size: int,
    samples_per_bin: int,
    offset_std: float,
) -> Tensor:
    """Pools regions of a feature map into bins moved by offsets.

    A region is divided into ``pooled_size`` x ``pooled_size`` bins. A bin is the mean of ``samples_per_bin`` x
    ``samples_per_bin`` bilinear samples, the first of them at its top-left corner. An offset moves a bin by
    ``offset_std`` times the offset times the region's width or height. Source: Dai et al., "Deformable
    Convolutional Networks" (2017), section 2.2, as in the authors' released code.

    The corners of a region are rounded (halves away from zero), the bottom-right corner is moved to its outer
    edge (+ 1), and both are scaled and shifted by half a cell: a region spans ``[round(x1) * spatial_scale -
    0.5, (round(x2) + 1) * spatial_scale - 0.5)`` in cells, and at least 0.1 cells. Samples more than half a
    cell beyond the outermost cells do not count; the others are clamped to the map. A bin without samples that
    count is 0.

    The authors' names ``trans``, ``sample_per_part`` and ``trans_std`` are accepted as keyword aliases.

    Args:
        input: (B, output_dim * group_size ** 2, H, W), float32, float64, float16 or bfloat16. Channel ``(o
            * group_size + i) * group_size + j`` feeds output channel o in the bins of row group i and
            column group j. With ``group_size=1`` every bin reads all channels.
        rois: (R, 5) rows of (image index, x1, y1, x2, y2) in image pixels, with inclusive corners: subtract 1
            from x2 and y2 of half-open boxes.
        offset: (R, 2 * K, part_size, part_size), or None for no offsets. The output channels are divided
            evenly into K classes; channel 2u moves class u along x, channel 2u + 1 along y.
        spatial_scale: cells per pixel: 1 / stride of the feature map.
        output_dim: number of output channels.
        group_size: number of groups of bins along each axis.
        pooled_size: number of bins along each axis.
        part_size: resolution of ``offset`` along each axis; bin i reads part ``i * part_size // pooled_size``.
        samples_per_bin: number of samples along each axis of a bin.
        offset_std: factor applied to the offsets.

    Returns:
        (R, output_dim, pooled_size, pooled_size), in the input's dtype.

    Raises:
        ValueError: if an argument is invalid; the message gives its name, its value and what was expected.

    Regions and offsets are read in float32 (float64 for float64 features), also under autocast, which casts
    only the features. Gradients reach ``input`` and ``offset`` and cannot be differentiated again. Regions
    receive no gradient, and samples that lie exactly on a cell or are clamped add none to the offsets. A region
    whose coordinates or extent in cells are not finite pools to zero; samples moved by non-finite offsets do
    not count. The image index is truncated to an integer. An index outside [0, B) is an error on the CPU; where
    checking it would stall the device or break a captured graph, the region pools to zero. The result is
    deterministic. On CUDA the input's gradient is summed with atomic additions, in varying order, or under
    ``torch.use_deterministic_algorithms(True)`` in fixed point, as in :func:`dcn_det.ops.deform_conv2d`.
    """
    _check(
        input, rois, offset, spatial_scale, output_dim, group_size, pooled_size, part_size, samples_per_bin, offset_std
    )
    dtype = coordinate_dtype(input)
    if offset is not None:
        offset = offset.to(dtype)
    return OPERATOR(
        input,
        rois.to(dtype),
        offset,
        spatial_scale,
        output_dim,
        group_size,
        pooled_size,
        part_size,
        samples_per_bin,
        offset_std,
    )


class DeformPSRoIPool(nn.Module):
    """Module form of :func:`deform_psroi_pool`, with the same arguments."""

    @_accept_released_names
    def __init__(
        self,
        *,
        spatial_scale: float,
        output_dim: int,
        group_size: int,
        pooled_size: int,
        part_size: int,
        samples_per_bin: int,
        offset_std: float,
    ) -> None:
        super().__init__()
        self.spatial_scale, self.offset_std = spatial_scale, offset_std
        self.output_dim, self.group_size, self.pooled_size = output_dim, group_size, pooled_size
        self.part_size, self.samples_per_bin = part_size, samples_per_bin

    @_accept_released_names
    def forward(self, input: Tensor, rois: Tensor, offset: Tensor | None = None) -> Tensor:
        """Returns (R, output_dim, pooled_size, pooled_size)."""
        return deform_psroi_pool(
            input,
            rois,
            offset,
            spatial_scale=self.spatial_scale,
            output_dim=self.output_dim,
            group_size=self.group_size,
            pooled_size=self.pooled_size,
            part_size=self.part_size,
            samples_per_bin=self.samples_per_bin,
            offset_std=self.offset_std,
        )

    def extra_repr(self) -> str:
        names = (
            "spatial_scale",
            "output_dim",
            "group_size",
            "pooled_size",
            "part_size",
            "samples_per_bin",
            "offset_std",
        )
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)


def _check(
    input: Tensor,
    rois: Tensor,
    offset: Tensor | None,
    spatial_scale: float,
    output_dim: int,
    group_size: int,
    pooled_size: int,
    part_size: int,
    samples_per_bin: int,
    offset_std: float,
) -> Checker:
    check = Checker("deform_psroi_pool")
    check.sizes(
        output_dim=output_dim,
        group_size=group_size,
        pooled_size=pooled_size,
        part_size=part_size,
        samples_per_bin=samples_per_bin,
    )
    check.scales(spatial_scale, offset_std)
    check.features(input, output_dim * group_size**2, "output_dim * group_size ** 2")
    check.rois(rois, input)
    if offset is not None:
        check.offset(offset, rois, input, output_dim, part_size)
    return check


def _fake(input: Tensor, rois: Tensor, offset: Tensor | None, *options: Any) -> Tensor:
    _check(input, rois, offset, *options).cast_coordinates(input, rois=rois, offset=offset)
    _, output_dim, _, pooled_size, *_ = options
    return input.new_empty(rois.shape[0], output_dim, pooled_size, pooled_size)


def _fake_backward(
    grad_output: Tensor, input: Tensor, rois: Tensor, offset: Tensor | None, *options: Any
) -> tuple[Tensor, Tensor]:
    *options_forward, need_input, need_offset = options
    _check(input, rois, offset, *options_forward).grad(grad_output, rois)
    return (
        torch.empty_like(input) if need_input else input.new_empty(0),
        offset.new_empty(offset.shape) if need_offset and offset is not None else rois.new_empty(0),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, rois, offset, *ctx.options = inputs
    ctx.save_for_backward(input, rois, offset)


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    input, rois, offset = ctx.saved_tensors
    need_input, _, need_offset = ctx.needs_input_grad[:3]
    operator = library.backward_operator("deform_psroi_pool", grad_output, need_input)
    grads = operator(grad_output, input, rois, offset, *ctx.options, need_input, need_offset)
    none = [None] * len(ctx.options)
    return grads[0] if need_input else None, None, grads[1] if need_offset else None, *none


OPERATOR = library.register(
    "deform_psroi_pool",
    plain=reference.deform_psroi_pool,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
    autocast=("input",),
)
library.register_backward("deform_psroi_pool", plain=reference.deform_psroi_pool_backward, fake=_fake_backward)
