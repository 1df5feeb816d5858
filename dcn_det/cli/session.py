"""Everything a training run needs, built from its config."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from dcn_det.config import Config
from dcn_det.data.build import build_dataset, build_eval_loader, build_train_loader
from dcn_det.data.loader import Loader
from dcn_det.data.sampler import TrainSampler
from dcn_det.engine.build import PRECISIONS, build_optimizer, build_schedule, learning_rate, run_length
from dcn_det.engine.logging import RunLog
from dcn_det.engine.testing import detect_all, pictures, say_sample_progress
from dcn_det.engine.trainer import Evaluate
from dcn_det.errors import UserError
from dcn_det.evaluation.coco import evaluate
from dcn_det.inference.predictor import Predictor, resolve_device
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
        self.test_set = build_dataset(config.data, "test", config.test.resize)
        if self.test_set.categories != self.train_set.categories:
            raise UserError(
                f"data.test.annotations: '{self.test_set.index.source}' has other categories than "
                f"'{self.train_set.index.source}'"
            )
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
                f"deform    convolutions {deformable}; RoI pooling {config.model.pooling}",
                f"train on  {self.train_set.index.report}",
                f"test on   {self.test_set.index.report}",
                f"rate      effective learning rate {self.rate}",
                f"length    {self.length} iterations of {self.rate.global_batch} images, "
                f"{self.length / self.epoch_length:.1f} epochs of {self.epoch_length} iterations",
            ]
        )

    def evaluator(self, log: RunLog) -> Evaluate:
        """Measures the model on the test split and puts some pictures into the log."""

        def run(model: nn.Module, iteration: int) -> Mapping[str, float]:
            predictor = self.predictor(model)
            index = self.test_set.index
            batches = build_eval_loader(self.test_set, self.config.data, self.config.test.batch_size)
            metrics = evaluate(index.source, detect_all(predictor, batches, len(index), log.say))
            files = [index.folder / index.file_name(i) for i in range(min(DRAWN_IMAGES, len(index)))]
            for name, picture in pictures(predictor, files):
                log.image(iteration, f"detections/{name}", picture)
            log.say(metrics.table())
            return metrics.values

        return run

    def predictor(self, model: nn.Module) -> Predictor:
        """A predictor with the settings of testing."""
        resize = self.config.test.resize or self.config.data.resize
        precision = PRECISIONS[self.config.train.precision]
        return Predictor(model, self.categories, resize.short_side, resize.max_side, self.device, precision)
