"""Normalization layers, interchangeable, with torchvision's parameter names."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Norm = Callable[[int], nn.Module]


class FrozenBatchNorm2d(nn.Module):
    """Batch norm with constant statistics and constant scale and shift.

    All of them are buffers, which optimizers and ``requires_grad_`` do not affect. ``num_batches_tracked`` of a
    checkpoint is ignored.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state_dict.pop(prefix + "num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, eps={self.eps}"


def _group_norm(channels: int, eps: float) -> nn.Module:
    # 32 groups (Wu and He, ECCV 2018), or the greatest common divisor with the channels.
    return nn.GroupNorm(math.gcd(32, channels), channels, eps=eps)


_NORMS: dict[str, Callable[..., nn.Module]] = {
    "frozen_bn": FrozenBatchNorm2d,
    "bn": nn.BatchNorm2d,
    "sync_bn": nn.SyncBatchNorm,
    "gn": _group_norm,
}


def norm_factory(kind: str, eps: float) -> Norm:
    """Returns a function that creates a normalization layer for a number of channels.

    Args:
        kind: ``frozen_bn``, ``bn``, ``sync_bn`` (statistics shared between processes) or ``gn``.
        eps: added to the variance.
    """
    return partial(_NORMS[kind], eps=eps)
