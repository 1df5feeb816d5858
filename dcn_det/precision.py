"""Numerical precision of a network's layers."""

from __future__ import annotations

import torch

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Dtypes by their names in settings."""


def autocast(device: torch.device, precision: torch.dtype) -> torch.autocast:
    """Returns a context in which most layers compute in ``precision``; float32 changes nothing."""
    mixed = precision != torch.float32
    return torch.autocast(device.type, dtype=precision if mixed else None, enabled=mixed)
