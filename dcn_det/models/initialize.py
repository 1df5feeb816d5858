"""Initialization of layers without pretrained weights."""

from __future__ import annotations

from torch import nn


def normal(*layers: nn.Conv2d | nn.Linear, std: float = 0.01) -> None:
    """Weights from N(0, ``std``), biases 0, as the authors' released code has it for every new layer."""
    for layer in layers:
        nn.init.normal_(layer.weight, std=std)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def he(*layers: nn.Conv2d | nn.Linear) -> None:
    """Weights that keep the signal's variance through a ReLU (He et al., 2015), biases 0.

    N(0, 0.01) suits layers of a thousand inputs on pretrained features; narrow layers trained from scratch would
    pass on almost nothing with it.
    """
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def zero(*layers: nn.Conv2d | nn.Linear) -> None:
    """Weights and biases 0: a branch that predicts offsets starts by predicting none."""
    for layer in layers:
        nn.init.zeros_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


START = {"normal": normal, "he": he}
"""By the name that ``hidden_init`` gives it."""
