"""Parameter groups: learning-rate multipliers and weight decay as the paper's recipe wants them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn


def parameter_groups(
    model: nn.Module, lr: float, weight_decay: float, decay_bias: bool, multipliers: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Sorts the trainable parameters into groups of equal learning rate and decay.

    Args:
        model: its parameters with ``requires_grad`` are taken; the rest is left alone.
        lr: base learning rate.
        weight_decay: for weights. Biases and the scales and shifts of normalisation layers (one-dimensional
            parameters) get it only with ``decay_bias``.
        decay_bias: the authors' optimizer does not decay biases.
        multipliers: parameter name -> factor on ``lr``; missing names have factor 1.

    Returns:
        Groups for a torch optimizer. Each also holds ``base_lr``, from which the schedule computes ``lr``, and the
        ``names`` of its parameters.
    """
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        factor = multipliers.get(name, 1.0)
        decay = weight_decay if parameter.ndim > 1 or decay_bias else 0.0
        group = groups.setdefault(
            (factor, decay),
            {"params": [], "names": [], "lr": lr * factor, "base_lr": lr * factor, "weight_decay": decay},
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())
