"""Builds the optimizer, the schedule and the loop settings of a config."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from dcn_det.config.train import SGDConfig, StepScheduleConfig, TrainConfig
from dcn_det.engine import schedule
from dcn_det.engine.optim import parameter_groups
from dcn_det.engine.trainer import LoopSettings
from dcn_det.errors import UserError
from dcn_det.precision import PRECISIONS

LONGEST = 10**9
"""Maximum number of iterations of a run."""


@dataclass(frozen=True)
class LearningRate:
    """Effective learning rate of a run, and how it is derived."""

    base: float
    reference_batch: int
    global_batch: int
    scaled: bool

    @property
    def effective(self) -> float:
        return self.base * self.global_batch / self.reference_batch if self.scaled else self.base

    def __str__(self) -> str:
        if not self.scaled:
            return (
                f"{self.effective:g} (train.scale_lr is off; global batch {self.global_batch}, "
                f"reference batch {self.reference_batch})"
            )
        return (
            f"{self.effective:g} = {self.base:g} x global batch {self.global_batch} / "
            f"reference batch {self.reference_batch} (linear scaling rule); gradients averaged over the global batch"
        )


@dataclass(frozen=True)
class Division:
    """Division of the images of a step: processes x passes x images per pass."""

    world_size: int
    batch_size: int
    accumulate: int

    @property
    def global_batch(self) -> int:
        return self.world_size * self.accumulate * self.batch_size

    def __str__(self) -> str:
        parts = [f"{self.global_batch} images"]
        if self.world_size > 1:
            parts.append(f"{self.world_size} processes")
        if self.accumulate > 1:
            parts.append(f"{self.accumulate} passes")
        return parts[0] if len(parts) == 1 else f"{parts[0]} ({' x '.join(parts[1:])} x {self.batch_size})"


def divide(train: TrainConfig, world_size: int, global_batch: int | None = None) -> Division:
    """Divides a step among processes and passes.

    Args:
        train: training settings.
        world_size: number of processes.
        global_batch: images per step of the run that is resumed, so that its steps consist of the same images with
            any number of processes. None uses the settings.

    Raises:
        UserError: ``global_batch`` is not divisible by ``world_size``.
    """
    configured = Division(world_size, train.batch_size, train.accumulate)
    if global_batch is None or configured.global_batch == global_batch:
        return configured
    each, rest = divmod(global_batch, world_size)
    if rest or each == 0:
        raise UserError(
            f"the run was started with {global_batch} images per step, not divisible by {world_size} processes; "
            "resume with a number of processes that divides it"
        )
    size = max(size for size in range(1, min(train.batch_size, each) + 1) if each % size == 0)
    return Division(world_size, size, each // size)


def learning_rate(train: TrainConfig, global_batch: int) -> LearningRate:
    """Returns the learning rate for steps of ``global_batch`` images, proportional to it (Goyal et al., 2017)."""
    return LearningRate(train.optimizer.lr, train.reference_batch, global_batch, scaled=train.scale_lr)


def build_optimizer(
    train: TrainConfig, model: nn.Module, lr: float, multipliers: Mapping[str, float]
) -> torch.optim.Optimizer:
    """Builds the optimizer; ``multipliers`` maps parameter names to factors on ``lr``."""
    settings = train.optimizer
    groups = parameter_groups(model, lr, settings.weight_decay, settings.decay_bias, multipliers)
    # One pass over each parameter: on a CPU, AdamW takes a sixth of the time, and SGD a quarter.
    if isinstance(settings, SGDConfig):
        return torch.optim.SGD(groups, lr=lr, momentum=settings.momentum, fused=True)
    return torch.optim.AdamW(groups, lr=lr, betas=settings.betas, fused=True)


@dataclass(frozen=True)
class Length:
    """Length of a run and of its parts, in optimizer steps.

    Attributes:
        run: the whole run.
        epoch: one epoch.
        warmup: the warm-up; 0 if there is none.
        unit: steps per iteration of the settings: ``train.reference_batch`` / images per step.
    """

    run: int
    epoch: int
    warmup: int
    unit: float


def run_length(train: TrainConfig, epoch: int, global_batch: int) -> Length:
    """Converts the numbers of iterations in the settings to steps of ``global_batch`` images.

    The released code's configurations state 1000 steps of warm-up for 8 GPUs, and 8000 for one.

    Args:
        train: training settings.
        epoch: steps per epoch.
        global_batch: images per step.

    Raises:
        UserError: the run is too long, or its warm-up is longer than the run.
    """
    unit = train.reference_batch / global_batch
    if train.iterations is not None:
        key, given, run = "train.iterations", f"{train.iterations} iterations of the config", train.iterations * unit
    else:
        assert train.epochs is not None
        key, given, run = "train.epochs", f"{train.epochs:g} epochs", train.epochs * epoch
    length = max(1, round(run))
    if length > LONGEST:
        raise UserError(f"{key}: {given} are {length} iterations; allowed: at most {LONGEST}")
    warmup = 0 if train.warmup.kind == "none" else round(train.warmup.iterations * unit)
    if warmup > length:
        raise UserError(
            f"train.warmup.iterations: the warm-up of {warmup} iterations is longer than the run of {length} "
            f"({global_batch} images each); set it to {max(1, math.floor(length / unit / 10))} or less, counted for "
            f"{train.reference_batch} images (train.reference_batch), or train.warmup.kind to none"
        )
    return Length(length, epoch, warmup, unit)


def drops(settings: StepScheduleConfig, length: Length) -> list[int]:
    """Returns the steps at which the learning rate drops."""
    unit = {"share": length.run, "epochs": length.epoch, "iterations": length.unit}[settings.unit]
    return [round(drop * unit) for drop in settings.drops]


def build_schedule(train: TrainConfig, length: Length) -> schedule.Factor:
    """Builds the schedule of a run."""
    settings, warmup = train.schedule, train.warmup
    if isinstance(settings, StepScheduleConfig):
        main = schedule.step(drops(settings, length), settings.gamma)
    else:
        main = schedule.cosine(length.run, settings.final)
    return schedule.with_warmup(main, warmup.kind, length.warmup, warmup.factor)


def loop_settings(train: TrainConfig, steps: Length, division: Division, stop_at: int | None = None) -> LoopSettings:
    """Returns the settings of a loop over a whole run that stops after step ``stop_at``, if given."""
    length = steps.run
    return LoopSettings(
        length=length,
        stop_at=length if stop_at is None else min(stop_at, length),
        batch_size=division.batch_size,
        accumulate=division.accumulate,
        log_every=train.log_every,
        checkpoint_every=train.checkpoint_every,
        eval_every=train.eval_every * {"epochs": steps.epoch, "iterations": 1}[train.eval_unit],
        clip_norm=train.clip_norm,
        precision=PRECISIONS[train.precision],
        best_metric=train.best_metric,
        nonfinite_skips=train.nonfinite_skips,
        oom_retry=train.oom_retry,
        measure_offsets=not train.compile,
    )
