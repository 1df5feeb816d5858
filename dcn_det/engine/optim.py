"""Parameter groups: learning-rate multipliers and weight decay as in the paper's training recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn


def parameter_groups(
    model: nn.Module, lr: float, weight_decay: float, decay_bias: bool, multipliers: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Groups the trainable parameters by learning rate and weight decay.

    Args:
        model: parameters without ``requires_grad`` are left out.
        lr: base learning rate.
        weight_decay: weight decay; applied to one-dimensional parameters (biases, and the scales and shifts of
            normalization layers) only with ``decay_bias``.
        decay_bias: also decay one-dimensional parameters; the authors' optimizer does not decay biases.
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
