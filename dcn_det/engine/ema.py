"""Exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dcn_det.weights.files import load_into


class WeightAverage:
    """Maintains ``average = decay * average + (1 - decay) * weights`` in a copy of the model.

    The decay is at most ``(1 + t) / (10 + t)`` after t steps, so that the initial weights lose their influence early.
    Parameters are averaged; buffers such as running statistics are copied.

    Args:
        model: the model to copy, not wrapped in DistributedDataParallel.
        decay: in (0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
        self._averaged.n_averaged.fill_(1)  # counts the copy, so that the first update averages
        self._averaged.requires_grad_(False)

    @property
    def model(self) -> nn.Module:
        """Model with the averages as weights."""
        return self._averaged.module

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Updates the averages with the weights after ``step`` steps (counted from 1)."""
        self._averaged.multi_avg_fn = get_ema_multi_avg_fn(min(self.decay, (1 + step) / (10 + step)))
        self._averaged.update_parameters(model)

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the averages by their names in ``model``."""
        return self.model.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor], source: Path) -> None:
        """Loads averages from the checkpoint ``source``."""
        load_into(self.model, state, source=source)
