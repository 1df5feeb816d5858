"""Interface of a task, such as detection: what is trained, on what, what a result is, and how it is measured and drawn.

Everything that depends on the task is here; training, testing and the commands are the same for all of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, NoReturn, Protocol, TypeVar

import torch
from torch import nn

from dcn_det.config import RunConfig
from dcn_det.data.build import build_train_loader
from dcn_det.data.loader import Loader
from dcn_det.distributed import Processes
from dcn_det.engine.logging import Log
from dcn_det.engine.trainer import Evaluate
from dcn_det.errors import UserError
from dcn_det.evaluation.metrics import Metrics
from dcn_det.evaluation.results import Result
from dcn_det.images import Image
from dcn_det.inference.build import restore_model, with_settings_of_weights
from dcn_det.inference.writers import Writer
from dcn_det.models.build import build_model
from dcn_det.models.detector import Backbone
from dcn_det.progress import Say
from dcn_det.structures import Category
from dcn_det.weights import checkpoint
from dcn_det.weights.backbone import load_backbone_weights
from dcn_det.weights.start import start_from

C = TypeVar("C", bound=RunConfig)


class Trained(Protocol):
    """Interface of a model: an ``nn.Module`` that, in training mode, maps a batch to losses whose sum is minimized."""

    backbone: Backbone

    def lr_multipliers(self) -> dict[str, float]:
        """Returns learning-rate multipliers other than 1, by parameter name."""

    def to(self, device: torch.device) -> nn.Module: ...


class Truth(Protocol):
    """Ground truth of a test split, which the task measures results in files against.

    Attributes:
        title: name of the split, see ``SplitsConfig.test_title``.
    """

    @property
    def title(self) -> str: ...


@dataclass(frozen=True)
class TestJob(Generic[C]):
    """One call of :func:`dcn_det.engine.testing.test`, in one process.

    Attributes:
        config: with the settings that belong to the weights.
        state, weights: content of the checkpoint, and its file.
        output: existing folder of the results.
        submission: name of the method for a server, if a submission is wanted.
        device: where to run.
        processes, say: the processes that share the images; receives progress lines.
    """

    config: C
    state: Mapping[str, Any]
    weights: Path
    output: Path
    submission: str | None
    device: str
    processes: Processes
    say: Say


@dataclass(frozen=True)
class TestResult:
    """Result of :func:`dcn_det.engine.testing.test`.

    Attributes:
        output: folder with the results, ``metrics.json`` and the resolved ``config.yaml``.
        metrics: None if the split has no annotations.
        files: paths of the results by name, such as ``detections`` and ``metrics``.
        detections: COCO results of all images; empty for other tasks than detection.
    """

    output: Path
    metrics: Metrics | None
    files: Mapping[str, Path]
    detections: list[Result] = field(default_factory=list)


@dataclass(frozen=True)
class Page:
    """A report of results.

    Attributes:
        html: self-contained page.
        files: further files of the report, such as plots, by name.
        warnings: one line each.
    """

    html: str
    files: Mapping[str, bytes]
    warnings: Sequence[str] = ()


@dataclass(frozen=True)
class PageOptions:
    """What a report shows; see the options of ``dcn-det analyze``."""

    images: Path | None
    score: float | None
    worst: int


@dataclass(frozen=True)
class Trial:
    """What a benchmark measures of a trained network on one image; the model is in evaluation mode.

    Attributes:
        network: runs the network.
        testing: runs it and everything else that testing does, up to a result on the CPU.
        notes: what else determines the speed, in words.
    """

    network: Callable[[], object]
    testing: Callable[[], object]
    notes: Sequence[str] = ()


class Task(ABC, Generic[C]):
    """Data, model and evaluation of a run. All else, such as the loop and its checkpoints, is the same for every task.

    Building a task opens its data; it does not change the process. What works without training data, such as testing
    and drawing, is in class methods.

    Args:
        config: the settings.
        processes: this process among those of the run; the only one by default.

    Raises:
        UserError: something the config names is missing or does not fit.
    """

    schema: ClassVar[type[RunConfig]]
    """Class of the settings."""
    title: ClassVar[str]
    """Name of the task in messages."""
    results_file: ClassVar[str] = "results.json"
    """Name of the file with the records of the images of ``dcn-det infer``."""
    writers: ClassVar[Mapping[str, type[Writer]]] = {}
    """Further formats of results, by name."""
    train_set: Any
    """The training images, with their ``index``; see :class:`dcn_det.data.build.TrainSet`."""

    def __init__(self, config: C, processes: Processes | None = None) -> None:
        self.started: Sequence[str] = ()
        """What was copied from ``model.weights``, one line per layer; see :func:`dcn_det.weights.start.start_from`."""
        self._start: Mapping[str, Any] | None = None
        if config.model.weights != "none":
            path = Path(config.model.weights)
            state = checkpoint.load(path, checkpoint.TESTING)
            self._start = {key: state[key] for key in checkpoint.TESTING}
            config = with_settings_of_weights(config, self._start, path)
        self.config = config
        self.processes = processes or Processes()

    @property
    @abstractmethod
    def categories(self) -> tuple[Category, ...]:
        """Classes by label."""

    def fingerprint(self) -> str:
        """Returns a text that changes with the training data."""
        text: str = self.train_set.index.fingerprint()
        return text

    def build_model(self) -> Any:
        """Builds the model on the CPU, with the weights that the config names, of the whole model or its backbone."""
        settings = self.config.model
        with self.processes.main_first():
            model: Trained = build_model(self.config, len(self.categories))
            if self._start is None:
                load_backbone_weights(model.backbone, settings.backbone)
            else:
                assert isinstance(model, nn.Module)
                path = Path(settings.weights)
                self.started = start_from(model, self.categories, self.config, self._start, path)
        return model

    def train_batches(
        self, start_iteration: int, batch_size: int, accumulate: int, pin_memory: bool = False
    ) -> Loader[Any]:
        """Returns an endless loader of this process's training batches, with a ``TrainSampler``.

        Args:
            start_iteration: optimizer steps already taken.
            batch_size, accumulate: images per pass in this process, and passes per step.
            pin_memory: see ``Loader``.
        """
        return build_train_loader(
            self.train_set,
            self.config.data,
            batch_size,
            self.config.seed,
            world_size=self.processes.world_size,
            rank=self.processes.rank,
            start_iteration=start_iteration,
            pin_memory=pin_memory,
            accumulate=accumulate,
        )

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

    @classmethod
    @abstractmethod
    def test(cls, job: TestJob[C]) -> TestResult:
        """Applies a trained model to the test split and measures the results; only the main process returns them all.

        Raises:
            UserError: data are missing, or do not fit the weights.
        """

    @classmethod
    def predictor(cls, model: Any, categories: tuple[Category, ...], config: C) -> Any:
        """Returns a function from an image to a result, in pixels of that image.

        Args:
            model: the trained model, on the device to use.
            categories: classes by label.
            config: the settings.
        """
        cls._refuse("results for single images")

    @classmethod
    def restore(cls, state: Mapping[str, Any], source: Path, config: C, device: str) -> Any:
        """Rebuilds a trained model as a :meth:`predictor`.

        Args:
            state, source: content of a checkpoint, and its file.
            config: the settings to use.
            device: see :func:`dcn_det.engine.testing.load`.

        Raises:
            UserError: the checkpoint is of a different model than ``config``, or the device is not available.
        """
        categories = checkpoint.categories_from_plain(state["categories"])
        model = restore_model(build_model(config, len(categories)), config, state, source, device)
        return cls.predictor(model, categories, config)

    @classmethod
    def random_batch(cls, count: int, height: int, width: int, seed: int, classes: int) -> Any:
        """Returns ``count`` images of noise with targets, to measure speed and memory."""
        cls._refuse("benchmarks")

    @classmethod
    def trial(cls, model: Any, categories: tuple[Category, ...], config: C, batch: Any) -> Trial:
        """Prepares a network of random weights for measuring the speed of testing on a :meth:`random_batch`."""
        cls._refuse("benchmarks")

    @classmethod
    def draw(cls, image: Image, result: Any, score: float | None = None) -> Image:
        """Draws a result on its image.

        Args:
            image: uint8 (H, W, 3) RGB.
            result: of the function that :meth:`predictor` returns.
            score: minimum score to draw; None for the task's own.
        """
        cls._refuse("results for single images")

    @classmethod
    def record(cls, result: Any) -> Mapping[str, Any]:
        """Returns a result as plain containers for JSON, by the name of what it holds."""
        cls._refuse("results for single images")

    @classmethod
    def files(cls, result: Any) -> Mapping[str, bytes]:
        """Returns further files of a result, by the ending of their names."""
        return {}

    @classmethod
    def read_truth(cls, config: C) -> Truth:
        """Reads the ground truth of a config's test split.

        Raises:
            UserError: it is missing, malformed or not annotated.
        """
        cls._refuse("results in files")

    @classmethod
    def measure(cls, config: C, truth: Any, results: Path, **options: Any) -> Metrics:
        """Computes the metrics of results in files.

        Args:
            config: settings of the evaluation.
            truth: see :meth:`read_truth`.
            results: a file or folder, as :meth:`test` writes it.
            options: those of ``dcn-det evaluate`` that were given.

        Raises:
            UserError: the results cannot be read, or the task has no such option.
        """
        cls._refuse("results in files")

    @classmethod
    def page(cls, config: C, truth: Any, source: Path, options: PageOptions) -> Page:
        """Describes results in a report.

        Raises:
            UserError: the results cannot be read.
        """
        cls._refuse("reports")

    @classmethod
    def _refuse(cls, what: str) -> NoReturn:
        raise UserError(f"{cls.title} does not have {what}")
