"""Everything a training run needs, built from its task."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from dcn_det.config import RunConfig, to_plain
from dcn_det.config.train import StepScheduleConfig
from dcn_det.data.loader import Loader
from dcn_det.data.sampler import TrainSampler
from dcn_det.distributed import resolve_device
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
from dcn_det.engine.task import Task
from dcn_det.engine.trainer import Trainer
from dcn_det.heap import keep_freed_memory
from dcn_det.structures import Category
from dcn_det.weights import checkpoint


def set_up_process(config: RunConfig, device: torch.device) -> None:
    """Prepares this process for training: memory allocator, determinism and the seeds of all random generators.

    The seeds determine the initial weights, so call this right before building a task and its :class:`Session`.
    """
    keep_freed_memory()
    if config.train.precision == "float16" and device.type == "cpu":
        warnings.warn("train.precision: float16 is very slow on a CPU; use bfloat16", stacklevel=2)
    if config.train.deterministic:
        be_deterministic()
    randomness.seed(config.seed)


def _labelled(label: str, lines: Sequence[str]) -> list[str]:
    """Returns lines of a summary with a label before the first one."""
    return [f"{label if not number else '':<9} {line}" for number, line in enumerate(lines)]


class Session:
    """Data, model, optimizer and schedule of one run, in this process.

    Building a session does not change the process; call :func:`set_up_process` first.

    Args:
        task: what to train and on what.
        device: device to use; None uses that of the config.
        global_batch: images per step of the run that is resumed.

    Raises:
        UserError: something the config names is missing or does not fit.
    """

    def __init__(self, task: Task[Any], device: torch.device | None = None, global_batch: int | None = None) -> None:
        self.task = task
        self.config: RunConfig = task.config
        config, self.processes = self.config, task.processes
        self.device = device or resolve_device(config.device)
        self.division = divide(config.train, self.processes.world_size, global_batch)
        model = task.build_model()
        self.lr_multipliers = model.lr_multipliers()
        self.model: nn.Module = model.to(self.device)
        if config.train.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.average = WeightAverage(self.model, config.train.ema_decay) if config.train.ema_decay else None
        recompute_stages(self.model, config.train.recompute_stages)
        self.compiled = compile_regions(self.model) if config.train.compile else []
        self.rate = learning_rate(config.train, self.division.global_batch)
        self.optimizer = build_optimizer(config.train, self.model, self.rate.effective, self.lr_multipliers)
        sampler = self.train_batches(0, self.division.batch_size, self.division.accumulate).sampler
        assert isinstance(sampler, TrainSampler)
        self.steps = run_length(config.train, sampler.epoch_length, self.division.global_batch)
        self.factor = build_schedule(config.train, self.steps)

    @property
    def categories(self) -> tuple[Category, ...]:
        return self.task.categories

    @property
    def length(self) -> int:
        """Optimizer steps of the whole run."""
        return self.steps.run

    def train_batches(self, start_iteration: int, batch_size: int, accumulate: int) -> Loader[Any]:
        """Returns an endless loader of this process's training batches, starting at an iteration."""
        return self.task.train_batches(start_iteration, batch_size, accumulate, self.device.type == "cuda")

    def summary(self) -> str:
        """Describes the run on several lines: data, model, learning rate and length."""
        config, total = self.config, sum(p.numel() for p in self.model.parameters())
        trainable = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        kinds = f"{config.model.kind}, {config.model.backbone.kind}"
        return "\n".join(
            [
                f"config    {config.name} (seed {config.seed}, {self.device})",
                f"model     {kinds}: {total:,} parameters, {trainable:,} trainable",
                *_labelled("start", self.task.started),
                *self.task.summary(),
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
        if self.compiled:
            yield f"compiled  {', '.join(self.compiled)} (offsets of deformable layers are not logged)"
        if self.config.train.oom_retry and self.processes.many:
            yield "note      train.oom_retry applies to single-process runs only; out of memory ends this run"

    def trainer(self, store: CheckpointStore, log: Log, stop_at: int | None = None) -> Trainer:
        """Builds the training loop."""
        return Trainer(
            self.model,
            self.optimizer,
            self.factor,
            self.train_batches,
            loop_settings(self.config.train, self.steps, self.division, stop_at),
            store,
            log,
            self.device,
            {
                "config": to_plain(self.config),
                "categories": checkpoint.categories_to_plain(self.categories),
                "data_fingerprint": self.task.fingerprint(),
            },
            self.task.evaluator(log),
            self.processes,
            self.average,
        )
