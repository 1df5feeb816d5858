"""An exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dcn_det.weights.files import load_into


class WeightAverage:
    """Keeps ``average = decay average + (1 - decay) weights`` in a model of its own.

    Early on the decay is lower, at most ``(1 + t) / (10 + t)`` after t steps, so that the random start is soon
    forgotten. Parameters are averaged, buffers such as running statistics are copied.

    Args:
        model: copied; not wrapped for several processes.
        decay: in (0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
        self._averaged.n_averaged.fill_(1)  # the copy counts; the first step already averages
        self._averaged.requires_grad_(False)

    @property
    def model(self) -> nn.Module:
        """The model that holds the averages."""
        return self._averaged.module

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Takes in the weights after ``step`` steps (from 1)."""
        self._averaged.multi_avg_fn = get_ema_multi_avg_fn(min(self.decay, (1 + step) / (10 + step)))
        self._averaged.update_parameters(model)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages, by the names that ``model`` gives them."""
        return self.model.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor], source: Path) -> None:
        """Puts averages from the checkpoint ``source`` back."""
        load_into(self.model, state, source=source)
