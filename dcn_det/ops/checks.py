"""What every operator expects of a tensor and of a number."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
FLOAT_NAMES = "float32, float64, float16 or bfloat16"
LARGEST_INT = 2**31 - 1
"""Kernels count the cells of an axis in 32 bits, for speed, and whole tensors in 64."""


def fault_of(
    value: object, dtypes: Sequence[torch.dtype] = FLOATS, dtype_names: str = FLOAT_NAMES
) -> tuple[str, str] | None:
    """What a tensor argument is instead, and what was expected; None for one that fits."""
    if not isinstance(value, Tensor):
        return "None" if value is None else f"a {type(value).__name__}", "a tensor"
    if value.layout != torch.strided:
        return str(value.layout), "torch.strided, a dense tensor"
    if value.dtype not in dtypes:
        return str(value.dtype), dtype_names
    return None


def is_number(value: object) -> bool:
    return isinstance(value, (int, float, torch.SymInt, torch.SymFloat))


def is_int(value: object) -> bool:
    return isinstance(value, (int, torch.SymInt))


def sizes_are_known() -> bool:
    """Whether sizes can be compared with limits: while a graph is captured, that would limit the graph."""
    return not torch.compiler.is_compiling()
