"""Checks of tensors and numbers that all operators share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
FLOAT_NAMES = "float32, float64, float16 or bfloat16"
LARGEST_INT = 2**31 - 1
"""Kernels count the cells along an axis in 32 bits, for speed, and those of a whole tensor in 64 bits."""

# Asked in advance, because not every supported version of PyTorch can compile the question.
_WITH_AUTOCAST = frozenset(
    device_type
    for device_type in ("cpu", "cuda", "hpu", "mps", "mtia", "xpu")
    if torch.amp.is_autocast_available(device_type)
)


def has_autocast(device_type: str) -> bool:
    """Returns whether autocast exists for a device."""
    return device_type in _WITH_AUTOCAST


def fault_of(
    value: object, dtypes: Sequence[torch.dtype] = FLOATS, dtype_names: str = FLOAT_NAMES
) -> tuple[str, str] | None:
    """Returns what a tensor argument is and what was expected, or None if it is valid."""
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
    """Whether sizes may be compared with limits: during graph capture, the comparison would restrict the graph."""
    return not torch.compiler.is_compiling()
