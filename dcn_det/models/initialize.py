"""Initialization of layers without pretrained weights."""

from __future__ import annotations

from torch import nn


def normal(*layers: nn.Conv2d | nn.Linear, std: float = 0.01) -> None:
    """Draws weights from N(0, ``std``) and sets biases to 0, as the authors' released code does for all new layers."""
    for layer in layers:
        nn.init.normal_(layer.weight, std=std)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def he(*layers: nn.Conv2d | nn.Linear) -> None:
    """Draws weights that preserve the variance through a ReLU (He et al., 2015) and sets biases to 0.

    N(0, 0.01) suits layers with about a thousand inputs on pretrained features; in narrow layers trained from scratch
    the activations would vanish.
    """
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def zero(*layers: nn.Conv2d | nn.Linear) -> None:
    """Sets weights and biases to 0, so that a branch initially predicts zero offsets."""
    for layer in layers:
        nn.init.zeros_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


START = {"normal": normal, "he": he}
"""Initializations by their names in ``hidden_init``."""
