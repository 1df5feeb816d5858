"""Counting operations. Apart from the operators, because PyTorch's counter imports triton."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from dcn_det.ops.schemas import WITH_DETERMINISTIC_TWIN


def _deform_conv2d(
    input: Sequence[int],
    offset: Sequence[int],
    weight: Sequence[int],
    *options: Any,
    **kwargs: Any,
) -> int:
    """Formulas take shapes in the place of tensors. Only products count, as in those of convolutions."""
    return 2 * offset[0] * offset[2] * offset[3] * math.prod(weight)


def _deform_conv2d_backward(
    grad: Sequence[int],
    input: Sequence[int],
    offset: Sequence[int],
    weight: Sequence[int],
    *options: Any,
    **kwargs: Any,
) -> int:
    need_input, need_offset, need_weight, need_mask = options[-4:]
    products = int(need_input or need_offset or need_mask) + int(need_weight)
    return products * _deform_conv2d(input, offset, weight)


BILINEAR = 8
"""A sample is the sum of four cells, each with a factor; so are its slopes along x and along y."""


def _deform_psroi_samples(rois: Sequence[int], options: Sequence[Any]) -> int:
    _, output_dim, _, pooled_size, _, sample_per_part, *_ = options
    return int(rois[0] * output_dim * (pooled_size * sample_per_part) ** 2)


def _deform_psroi_pool(
    input: Sequence[int], rois: Sequence[int], trans: Sequence[int] | None, *options: Any, **kwargs: Any
) -> int:
    return BILINEAR * _deform_psroi_samples(rois, options)


def _deform_psroi_pool_backward(
    grad: Sequence[int],
    input: Sequence[int],
    rois: Sequence[int],
    trans: Sequence[int] | None,
    *options: Any,
    **kwargs: Any,
) -> int:
    need_input, need_trans = options[-2:]
    sums = int(need_input) + 2 * int(need_trans and trans is not None)
    return sums * BILINEAR * _deform_psroi_samples(rois, options)


def _no_products(*args: Any, **kwargs: Any) -> int:
    """Additions and comparisons, as many as values ask for."""
    return 0


FORMULAS: dict[Any, Callable[..., int]] = {
    torch.ops.dcn_det.deform_conv2d: _deform_conv2d,
    torch.ops.dcn_det.deform_conv2d_backward: _deform_conv2d_backward,
    torch.ops.dcn_det.deform_psroi_pool: _deform_psroi_pool,
    torch.ops.dcn_det.deform_psroi_pool_backward: _deform_psroi_pool_backward,
    torch.ops.dcn_det.psroi_pool: _no_products,
    torch.ops.dcn_det.psroi_pool_backward: _no_products,
    torch.ops.dcn_det.roi_align: _no_products,
    torch.ops.dcn_det.roi_align_backward: _no_products,
    torch.ops.dcn_det.roi_pool: _no_products,
    torch.ops.dcn_det.roi_pool_backward: _no_products,
    torch.ops.dcn_det.nms: _no_products,
}
FORMULAS |= {
    getattr(torch.ops.dcn_det, f"{name}_deterministic"): FORMULAS[getattr(torch.ops.dcn_det, name)]
    for name in WITH_DETERMINISTIC_TWIN
}


def flop_counter(display: bool = False, depth: int = 2) -> FlopCounterMode:
    """PyTorch's counter of floating point operations, which also knows this package's operators.

    A multiplication with its addition counts as two. A deformable convolution counts as the convolution it
    is, without its samples, so that networks can be compared; a pooling of samples between cells counts these.
    What reads whole cells and compares boxes, as often as their values ask for, does not count::

        with flop_counter() as counter:
            model(images)
        counter.get_total_flops()

    Args:
        display: whether to print a table at the end.
        depth: of the table, in levels of modules.
    """
    return FlopCounterMode(display=display, depth=depth, custom_mapping=FORMULAS)
