"""Everything a training run needs, built from its config."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import nn

from dcn_det.config import Config, to_plain
from dcn_det.config.model import ResidualBackboneConfig
from dcn_det.config.train import StepScheduleConfig
from dcn_det.data.build import build_dataset, build_train_loader
from dcn_det.data.dataset import DetectionDataset
from dcn_det.data.findings import first_few
from dcn_det.data.loader import Loader
from dcn_det.data.sampler import TrainSampler
from dcn_det.distributed import Processes, resolve_device
from dcn_det.engine import randomness
from dcn_det.engine.build import (
    build_optimizer,
    build_schedule,
    divide,
    drops,
    learning_rate,
    loop_settings,
    run_length,
)
from dcn_det.engine.ema import WeightAverage
from dcn_det.engine.logging import Log
from dcn_det.engine.prepare import be_deterministic, compile_regions, recompute_stages
from dcn_det.engine.store import CheckpointStore
from dcn_det.engine.testing import pictures, run_test
from dcn_det.engine.trainer import Evaluate, Trainer
from dcn_det.evaluation.truth import Truth
from dcn_det.heap import keep_freed_memory
from dcn_det.inference.build import build_predictor
from dcn_det.models.build import build_detector
from dcn_det.models.detector import Detector
from dcn_det.progress import Progress
from dcn_det.structures import Category
from dcn_det.weights import checkpoint
from dcn_det.weights.backbone import load_backbone_weights

DRAWN_IMAGES = 8
"""Test images drawn at each evaluation."""


def set_up_process(config: Config, device: torch.device) -> None:
    """Prepares this process for training: memory allocator, determinism and the seeds of all random generators.

    The seeds determine the initial weights, so call this right before building a :class:`Session`.
    """
    keep_freed_memory()
    if config.train.precision == "float16" and device.type == "cpu":
        warnings.warn("train.precision: float16 is very slow on a CPU; use bfloat16", stacklevel=2)
    if config.train.deterministic:
        be_deterministic()
    randomness.seed(config.seed)


class Session:
    """Data, model, optimizer and schedule of one config, in this process.

    Building a session does not change the process; call :func:`set_up_process` first.

    Args:
        config: the settings.
        processes: this process among those of the run.
        device: device to use; None uses that of the config.
        global_batch: images per step of the run that is resumed.

    Raises:
        UserError: something the config names is missing or does not fit.
    """

    def __init__(
        self,
        config: Config,
        processes: Processes | None = None,
        device: torch.device | None = None,
        global_batch: int | None = None,
    ) -> None:
        self.config = config
        self.processes = processes or Processes()
        self.device = device or resolve_device(config.device)
        self.division = divide(config.train, self.processes.world_size, global_batch)
        with self.processes.main_first():
            self.train_set = build_dataset(config.data, "train", progress=Progress("sample image"))
        self.truth: Truth | None = None
        self.test_set = self._annotated_test_set()
        with self.processes.main_first():
            model = build_detector(config, len(self.categories))
            load_backbone_weights(model.backbone, config.model.backbone)
        self.model: nn.Module = model.to(self.device)
        if config.train.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.average = WeightAverage(self.model, config.train.ema_decay) if config.train.ema_decay else None
        recompute_stages(self.model, config.train.recompute_stages)
        self.compiled = compile_regions(self.model) if config.train.compile else []
        self.rate = learning_rate(config.train, self.division.global_batch)
        self.lr_multipliers = self.model.lr_multipliers()
        self.optimizer = build_optimizer(config.train, self.model, self.rate.effective, self.lr_multipliers)
        sampler = self.train_batches(0, self.division.batch_size, self.division.accumulate).sampler
        assert isinstance(sampler, TrainSampler)
        self.steps = run_length(config.train, sampler.epoch_length, self.division.global_batch)
        self.factor = build_schedule(config.train, self.steps)

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

    @property
    def length(self) -> int:
        """Optimizer steps of the whole run."""
        return self.steps.run

    def train_batches(self, start_iteration: int, batch_size: int, accumulate: int) -> Loader:
        """Returns an endless loader of this process's training batches, starting at an iteration."""
        return build_train_loader(
            self.train_set,
            self.config.data,
            batch_size,
            self.config.seed,
            world_size=self.processes.world_size,
            rank=self.processes.rank,
            start_iteration=start_iteration,
            pin_memory=self.device.type == "cuda",
            accumulate=accumulate,
        )

    def summary(self) -> str:
        """Describes the run on several lines: data, model, learning rate and length."""
        config, total = self.config, sum(p.numel() for p in self.model.parameters())
        trainable = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        backbone = config.model.backbone
        blocks = backbone.deform.blocks if isinstance(backbone, ResidualBackboneConfig) else ()
        deformable = ", ".join(blocks) or "none"
        return "\n".join(
            [
                f"config    {config.name} (seed {config.seed}, {self.device})",
                f"model     {config.model.kind}, {backbone.kind}: {total:,} parameters, {trainable:,} trainable",
                f"deform    convolutions {deformable}; RoI pooling {config.model.pooling}",
                f"train on  {self.train_set.index.report}",
                f"test on   {self.test_set.index.report if self.test_set else 'nothing: no annotations'}",
                f"rate      effective learning rate {self.rate}",
                f"length    {self.length} iterations of {self.division}, "
                f"{self.length / self.steps.epoch:.1f} epochs of {self.steps.epoch} iterations",
                f"schedule  {self._schedule()}",
                *self._particulars(),
            ]
        )

    def _schedule(self) -> str:
        train, steps = self.config.train, self.steps
        parts = [f"{steps.run * self.division.global_batch} images"]
        if steps.warmup:
            share = steps.warmup / steps.run
            parts.append(f"warm-up {train.warmup.kind} for {steps.warmup} iterations ({share:.2%} of the run)")
        if isinstance(train.schedule, StepScheduleConfig):
            changes = [i for i in drops(train.schedule, steps) if i < steps.run]
            parts.append(f"rate x {train.schedule.gamma:g} at {', '.join(map(str, changes)) or 'no iteration'}")
        if steps.unit != 1:
            parts.append(
                f"iterations of the config x {steps.unit:g} (reference batch {train.reference_batch} / global batch "
                f"{self.division.global_batch})"
            )
        return "; ".join(parts)

    def _particulars(self) -> Iterator[str]:
        """Yields the lines that only some runs have."""
        if self.steps.warmup > self.steps.run / 2:
            yield "warning   the warm-up (train.warmup.iterations) is more than half of the run"
        multipliers = self.lr_multipliers
        for factor in sorted(set(multipliers.values())):
            names = [name for name, value in multipliers.items() if value == factor]
            yield f"lr mult   {factor:g} for {', '.join(names[:4])}{' ...' if len(names) > 4 else ''}"
        shared = self._shared_images()
        if shared:
            yield f"warning   images in both the training and the test split: {len(shared)} ({first_few(shared)})"
        if self.compiled:
            yield f"compiled  {', '.join(self.compiled)} (offsets of deformable layers are not logged)"
        if self.config.train.oom_retry and self.processes.many:
            yield "note      train.oom_retry applies to single-process runs only; out of memory ends this run"

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
        """Returns a function that evaluates a model on the test split and logs metrics and some images.

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
                values = metrics.values
            return processes.share(values)

        return run

    def trainer(self, store: CheckpointStore, log: Log, stop_at: int | None = None) -> Trainer:
        """Builds the training loop."""
        return Trainer(
            self.model,
            self.optimizer,
            self.factor,
            self.train_batches,
            loop_settings(self.config.train, self.length, self.division, stop_at),
            store,
            log,
            self.device,
            {
                "config": to_plain(self.config),
                "categories": checkpoint.categories_to_plain(self.categories),
                "data_fingerprint": self.train_set.index.fingerprint(),
            },
            self.evaluator(log),
            self.processes,
            self.average,
        )
