"""Counts operations. Separate from the operators, because PyTorch's counter imports triton."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from dcn_det.ops.schemas import SCHEMAS


def _deform_conv2d(
    input: Sequence[int],
    offset: Sequence[int],
    weight: Sequence[int],
    *options: Any,
    **kwargs: Any,
) -> int:
    """Counts as a convolution does, products only; formulas receive shapes in place of tensors."""
    return 2 * offset[0] * offset[2] * offset[3] * math.prod(weight)


def _deform_conv2d_backward(
    grad: Sequence[int],
    input: Sequence[int],
    offset: Sequence[int],
    weight: Sequence[int],
    *options: Any,
    **kwargs: Any,
) -> int:
    need_input, need_offset, need_weight, need_mask = options[5:9]
    products = int(need_input or need_offset or need_mask) + int(need_weight)
    return products * _deform_conv2d(input, offset, weight)


def _no_products(*args: Any, **kwargs: Any) -> int:
    """Formula of pooling, whose work depends on the regions, and of suppression."""
    return 0


FORMULAS: dict[Any, Callable[..., int]] = {
    getattr(torch.ops.dcn_det, name): _no_products for name in SCHEMAS if "deform_conv2d" not in name
} | {
    torch.ops.dcn_det.deform_conv2d: _deform_conv2d,
    torch.ops.dcn_det.deform_conv2d_backward: _deform_conv2d_backward,
    torch.ops.dcn_det.deform_conv2d_backward_deterministic: _deform_conv2d_backward,
}


def flop_counter(display: bool = False, depth: int = 2) -> FlopCounterMode:
    """Returns PyTorch's counter of floating point operations, extended by this package's operators.

    A multiply-add counts as two operations. A deformable convolution counts as a plain convolution, without
    its sampling, so that networks can be compared. RoI pooling and non-maximum suppression do not count::

        with flop_counter() as counter:
            model(images)
        counter.get_total_flops()

    Args:
        display: whether to print a table at the end.
        depth: depth of the table, in module levels.
    """
    return FlopCounterMode(display=display, depth=depth, custom_mapping=FORMULAS)
