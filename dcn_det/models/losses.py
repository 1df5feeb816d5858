"""Losses, always computed in float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def smooth_l1(prediction: Tensor, target: Tensor, sigma: float) -> Tensor:
    """Computes the smooth L1 loss: ``0.5 (sigma d)^2`` if ``|d| < 1 / sigma^2``, else ``|d| - 0.5 / sigma^2``.

    Args:
        prediction, target: of equal shape, any floating type.
        sigma: 1 in Fast R-CNN (Girshick, ICCV 2015), 3 in the RPN of the released code.

    Returns:
        float32, of the same shape.
    """
    distance = (prediction.float() - target.float()).abs()
    bend = 1.0 / (sigma * sigma)
    return torch.where(distance < bend, 0.5 * distance * distance / bend, distance - 0.5 * bend)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Computes the softmax cross entropy of each row.

    Args:
        logits: (N, K), any floating type.
        labels: int64 (N,).

    Returns:
        float32 (N,).
    """
    return F.cross_entropy(logits.float(), labels, reduction="none")


def cross_entropy_mean(logits: Tensor, labels: Tensor) -> Tensor:
    """Averages :func:`cross_entropy` over rows; without rows it is 0, but still part of the graph."""
    return cross_entropy(logits, labels).sum() / max(len(labels), 1)
