"""Detection as a task of training."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from dcn_det.config import Config
from dcn_det.config.model import ResidualBackboneConfig
from dcn_det.data.build import build_dataset, build_train_loader
from dcn_det.data.dataset import DetectionDataset
from dcn_det.data.findings import first_few
from dcn_det.data.loader import Loader
from dcn_det.distributed import Processes
from dcn_det.engine.logging import Log
from dcn_det.engine.task import Task
from dcn_det.engine.testing import pictures, run_test
from dcn_det.engine.trainer import Evaluate
from dcn_det.engine.watch import log_offsets
from dcn_det.evaluation.truth import Truth
from dcn_det.inference.build import build_predictor
from dcn_det.models.build import build_detector
from dcn_det.models.detector import Detector
from dcn_det.progress import Progress
from dcn_det.structures import Batch, Category
from dcn_det.weights.backbone import load_backbone_weights

DRAWN_IMAGES = 8
"""Test images drawn at each evaluation."""


class DetectionTask(Task[Config]):
    """Trains a detector; it is measured by the metrics of the data format.

    Args:
        config, processes: see :class:`dcn_det.engine.task.Task`.
    """

    schema = Config

    def __init__(self, config: Config, processes: Processes | None = None) -> None:
        super().__init__(config, processes)
        with self.processes.main_first():
            self.train_set = build_dataset(config.data, "train", progress=Progress("sample image"))
        self.truth: Truth | None = None
        self.test_set = self._annotated_test_set()

    def _annotated_test_set(self) -> DetectionDataset | None:
        """Returns the test split, or None if it has no annotations."""
        data = self.config.data
        if data.test is None:
            return None
        names = [category.name for category in self.categories]
        dataset = build_dataset(data, "test", self.config.test.resize, classes=names)
        if not dataset.index.annotated:
            warnings.warn(f"'{dataset.index.source}' has no annotations: training is not evaluated", stacklevel=3)
            return None
        self.truth = Truth.of_config(self.config)  # refuses now what evaluation would refuse after hours of training
        return dataset

    @property
    def categories(self) -> tuple[Category, ...]:
        return self.train_set.categories

    def fingerprint(self) -> str:
        return self.train_set.index.fingerprint()

    def build_model(self) -> Detector[Any]:
        with self.processes.main_first():
            model = build_detector(self.config, len(self.categories))
            load_backbone_weights(model.backbone, self.config.model.backbone)
        return model

    def train_batches(
        self, start_iteration: int, batch_size: int, accumulate: int, pin_memory: bool = False
    ) -> Loader[Batch]:
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

    def summary(self) -> list[str]:
        model = self.config.model
        blocks = model.backbone.deform.blocks if isinstance(model.backbone, ResidualBackboneConfig) else ()
        lines = [
            f"deform    convolutions {', '.join(blocks) or 'none'}; RoI pooling {model.pooling}",
            f"train on  {self.train_set.index.report}",
            f"test on   {self.test_set.index.report if self.test_set else 'nothing: no annotations'}",
        ]
        shared = self._shared_images()
        if shared:
            lines.append(
                f"warning   images in both the training and the test split: {len(shared)} ({first_few(shared)})"
            )
        return lines

    def _shared_images(self) -> list[str]:
        """Returns the images that are trained on and tested on, which makes the metrics too good."""
        if self.test_set is None:
            return []
        train, test = (
            {f"{index.folder}/{index.file_name(i)}" for i in range(len(index))}
            for index in (self.train_set.index, self.test_set.index)
        )
        return sorted(train & test)

    def evaluator(self, log: Log) -> Evaluate | None:
        """Returns a function that evaluates a model on the test split and logs metrics, some images and offsets.

        The processes share the images. Returns None if there are no annotations to evaluate against.
        """
        processes, test_set = self.processes, self.test_set
        if test_set is None:
            return None

        def run(model: nn.Module, iteration: int) -> Mapping[str, float]:
            assert isinstance(model, Detector)  # the session's model or its average
            predictor = build_predictor(model, test_set.categories, self.config)
            with tempfile.TemporaryDirectory(prefix="dcn_det-test-") as folder:
                _, metrics = run_test(predictor, test_set, self.config, Path(folder), log.say, processes, self.truth)
            values = None
            if processes.main:
                assert metrics is not None
                log.say(metrics.table())
                log.scalars(iteration, {f"AP of class/{name}": ap for name, ap in metrics.per_class.items()}, "test")
                for name, picture in pictures(predictor, test_set.index, DRAWN_IMAGES):
                    log.image(iteration, f"pictures/{name}", picture)
                if not self.config.train.compile:  # compiled regions do not run hooks
                    log_offsets(log, iteration, predictor, test_set.index)
                values = metrics.values
            return processes.share(values)

        return run
