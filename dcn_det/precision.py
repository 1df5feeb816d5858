"""Numerical precision of a network's layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dcn_det.ops.library import without_autocast

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Dtypes by their names in settings."""


def autocast(device: torch.device, precision: torch.dtype) -> torch.autocast:
    """Returns a context in which most layers compute in ``precision``; float32 changes nothing."""
    mixed = precision != torch.float32
    return torch.autocast(device.type, dtype=precision if mixed else None, enabled=mixed)


def in_full_precision(layer: nn.Conv2d | nn.Linear, x: Tensor) -> Tensor:
    """Applies a layer in the dtype of its weights, which is float32 also under autocast.

    Scores and box deltas need it: bfloat16 has 8 significant bits, so the best scores of an image would be tied, and
    selection, suppression and ranking would depend on the order of boxes.
    """
    with without_autocast(x.device.type):
        return layer(x.to(layer.weight.dtype))
