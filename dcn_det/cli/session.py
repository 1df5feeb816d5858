"""Everything a training run needs, built from its config."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from dcn_det.config import Config
from dcn_det.data.build import build_dataset, build_train_loader
from dcn_det.data.loader import DetectionDataset, Loader
from dcn_det.data.sampler import TrainSampler
from dcn_det.engine.build import build_optimizer, build_schedule, learning_rate, run_length
from dcn_det.engine.logging import RunLog
from dcn_det.engine.testing import pictures, run_test, say_sample_progress
from dcn_det.engine.trainer import Evaluate
from dcn_det.errors import UserError
from dcn_det.inference.build import build_predictor
from dcn_det.inference.predictor import resolve_device
from dcn_det.models.build import build_detector
from dcn_det.structures import Category

WORLD_SIZE = 1
DRAWN_IMAGES = 8


class Session:
    """Data, model, optimizer and schedule of one config, in this process.

    Args:
        config: the settings.

    Raises:
        UserError: something the settings name is missing or does not fit.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.device = resolve_device(config.device)
        self.train_set = build_dataset(config.data, "train", progress=say_sample_progress)
        self.test_set = self._annotated_test_set()
        torch.manual_seed(config.seed)
        self.model: nn.Module = build_detector(config.model, len(self.categories), config.test).to(self.device)
        if config.train.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.rate = learning_rate(config.train, WORLD_SIZE)
        self.optimizer = build_optimizer(config.train, self.model, self.rate.effective, self.model.lr_multipliers())
        sampler = self.train_batches(0).sampler
        assert isinstance(sampler, TrainSampler)
        self.epoch_length = sampler.epoch_length
        self.length = run_length(config.train, self.epoch_length)
        self.factor = build_schedule(config.train, self.length)

    def _annotated_test_set(self) -> DetectionDataset | None:
        """The test split; None when there is nothing to evaluate against."""
        data = self.config.data
        if data.test is None:
            return None
        dataset = build_dataset(data, "test", self.config.test.resize)
        if dataset.categories != self.train_set.categories:
            raise UserError(
                f"data.test.annotations: '{dataset.index.source}' has other categories than "
                f"'{self.train_set.index.source}'"
            )
        if not dataset.index.annotated:
            warnings.warn(f"'{dataset.index.source}' has no annotations: training is not evaluated", stacklevel=3)
            return None
        return dataset

    @property
    def categories(self) -> tuple[Category, ...]:
        return self.train_set.categories

    def train_batches(self, start_iteration: int) -> Loader:
        """Training batches from an iteration on, without end."""
        return build_train_loader(
            self.train_set,
            self.config.data,
            self.config.train.batch_size,
            self.config.seed,
            start_iteration=start_iteration,
            pin_memory=self.device.type == "cuda",
        )

    def summary(self) -> str:
        """What is about to be trained, on several lines."""
        config, total = self.config, sum(p.numel() for p in self.model.parameters())
        trainable = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        backbone = config.model.backbone
        deformable = ", ".join(backbone.deform.blocks) or "none"
        return "\n".join(
            [
                f"config    {config.name} (seed {config.seed}, {self.device})",
                f"model     {config.model.kind}, {backbone.kind}: {total:,} parameters, {trainable:,} trainable",
                f"deform    convolutions {deformable}; RoI pooling {config.model.head.pooling}",
                f"train on  {self.train_set.index.report}",
                f"test on   {self.test_set.index.report if self.test_set else 'nothing: no annotations'}",
                f"rate      effective learning rate {self.rate}",
                f"length    {self.length} iterations of {self.rate.global_batch} images, "
                f"{self.length / self.epoch_length:.1f} epochs of {self.epoch_length} iterations",
            ]
        )

    def evaluator(self, log: RunLog) -> Evaluate:
        """Measures the model on the test split and puts some pictures into the log."""

        def run(model: nn.Module, iteration: int) -> Mapping[str, float]:
            predictor = build_predictor(model, self.categories, self.config)
            assert self.test_set is not None
            with tempfile.TemporaryDirectory(prefix="dcn_det-test-") as folder:
                _, metrics = run_test(predictor, self.test_set, self.config, Path(folder), log.say)
            index = self.test_set.index
            files = [index.folder / index.file_name(i) for i in range(min(DRAWN_IMAGES, len(index)))]
            for name, picture in pictures(predictor, files):
                log.image(iteration, f"detections/{name}", picture)
            assert metrics is not None
            log.say(metrics.table())
            return metrics.values

        return run
