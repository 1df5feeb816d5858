"""Interface of a task, such as detection: what is trained, on what, and how it is measured."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from torch import nn

from dcn_det.config import RunConfig
from dcn_det.data.loader import Loader
from dcn_det.distributed import Processes
from dcn_det.engine.logging import Log
from dcn_det.engine.trainer import Evaluate
from dcn_det.structures import Category

C = TypeVar("C", bound=RunConfig)


class Trained(Protocol):
    """Interface of a model: an ``nn.Module`` that, in training mode, maps a batch to losses whose sum is minimized."""

    def lr_multipliers(self) -> dict[str, float]:
        """Returns learning-rate multipliers other than 1, by parameter name."""

    def to(self, device: torch.device) -> nn.Module: ...


class Task(ABC, Generic[C]):
    """Data, model and evaluation of a run. All else, such as the loop and its checkpoints, is the same for every task.

    Building a task opens its data; it does not change the process.

    Args:
        config: the settings.
        processes: this process among those of the run; the only one by default.

    Raises:
        UserError: something the config names is missing or does not fit.
    """

    schema: ClassVar[type[RunConfig]]
    """Class of the settings."""

    def __init__(self, config: C, processes: Processes | None = None) -> None:
        self.config = config
        self.processes = processes or Processes()

    @property
    @abstractmethod
    def categories(self) -> tuple[Category, ...]:
        """Classes by label."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Returns a text that changes with the training data."""

    @abstractmethod
    def build_model(self) -> Trained:
        """Builds the model on the CPU, with the pretrained weights of the config."""

    @abstractmethod
    def train_batches(
        self, start_iteration: int, batch_size: int, accumulate: int, pin_memory: bool = False
    ) -> Loader[Any]:
        """Returns an endless loader of this process's training batches, with a ``TrainSampler``.

        Args:
            start_iteration: optimizer steps already taken.
            batch_size, accumulate: images per pass in this process, and passes per step.
            pin_memory: see ``Loader``.
        """

    @abstractmethod
    def summary(self) -> Sequence[str]:
        """Describes model and data, one line each."""

    @abstractmethod
    def evaluator(self, log: Log) -> Evaluate | None:
        """Returns a function that measures a model on the test split; None if there is nothing to measure it on."""

    def export(self, model: nn.Module, folder: Path) -> Mapping[str, Path]:
        """Writes further files of the final model, atomically; called in the main process.

        Args:
            model: with its final weights.
            folder: of the run.

        Returns:
            Their paths by name.
        """
        return {}
