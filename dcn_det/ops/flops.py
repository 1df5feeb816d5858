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


FORMULAS: dict[Any, Callable[..., int]] = {
    torch.ops.dcn_det.deform_conv2d: _deform_conv2d,
    torch.ops.dcn_det.deform_conv2d_backward: _deform_conv2d_backward,
}


def _with_twins(formulas: dict[Any, Callable[..., int]]) -> dict[Any, Callable[..., int]]:
    """Adds the deterministic backward operators, which count as the usual ones do."""
    operators = torch.ops.dcn_det
    twins = {getattr(operators, name): getattr(operators, f"{name}_deterministic") for name in WITH_DETERMINISTIC_TWIN}
    return formulas | {twins[operator]: formula for operator, formula in formulas.items() if operator in twins}


def flop_counter(display: bool = False, depth: int = 2) -> FlopCounterMode:
    """PyTorch's counter of floating point operations, which also knows this package's operators.

    A multiplication with its addition counts as two. Samples between the cells of a map are not counted::

        with flop_counter() as counter:
            model(images)
        counter.get_total_flops()

    Args:
        display: whether to print a table at the end.
        depth: of the table, in levels of modules.
    """
    return FlopCounterMode(display=display, depth=depth, custom_mapping=_with_twins(FORMULAS))
