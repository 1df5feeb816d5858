"""From settings to optimizer, schedule and loop."""

from __future__ import annotations

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


@dataclass(frozen=True)
class LearningRate:
    """The learning rate a run really uses, and why."""

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
                f"{self.effective:g} (as given, train.scale_lr is off; global batch {self.global_batch}, "
                f"reference batch {self.reference_batch})"
            )
        return (
            f"{self.effective:g} = {self.base:g} x global batch {self.global_batch} / "
            f"reference batch {self.reference_batch} (linear rule); gradients are averaged over the global batch"
        )


@dataclass(frozen=True)
class Division:
    """How the images of a step are divided: processes x passes x images of a pass."""

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
    """Divides a step between processes and passes.

    Args:
        train: the settings.
        world_size: number of processes.
        global_batch: images of a step in the run that is resumed; the same images then make the same steps, whatever
            the number of processes. None takes what the settings give.

    Raises:
        UserError: ``global_batch`` cannot be divided.
    """
    asked = Division(world_size, train.batch_size, train.accumulate)
    if global_batch is None or asked.global_batch == global_batch:
        return asked
    each, rest = divmod(global_batch, world_size)
    if rest or each == 0:
        raise UserError(
            f"the run was started with {global_batch} images a step, which {world_size} processes cannot share "
            "evenly; resume with a number of processes that divides it"
        )
    size = max(size for size in range(1, min(train.batch_size, each) + 1) if each % size == 0)
    return Division(world_size, size, each // size)


def learning_rate(train: TrainConfig, global_batch: int) -> LearningRate:
    """The rate for a step of ``global_batch`` images (Goyal et al., 2017: proportional to it)."""
    return LearningRate(train.optimizer.lr, train.reference_batch, global_batch, scaled=train.scale_lr)


def build_optimizer(
    train: TrainConfig, model: nn.Module, lr: float, multipliers: Mapping[str, float]
) -> torch.optim.Optimizer:
    settings = train.optimizer
    groups = parameter_groups(model, lr, settings.weight_decay, settings.decay_bias, multipliers)
    if isinstance(settings, SGDConfig):
        return torch.optim.SGD(groups, lr=lr, momentum=settings.momentum)
    return torch.optim.AdamW(groups, lr=lr, betas=settings.betas)


def run_length(train: TrainConfig, iterations_per_epoch: int) -> int:
    """Optimizer steps of the whole run."""
    if train.iterations is not None:
        return train.iterations
    assert train.epochs is not None
    return max(1, round(train.epochs * iterations_per_epoch))


def build_schedule(train: TrainConfig, length: int, epoch_length: int) -> schedule.Factor:
    """The learning-rate factor of each of ``length`` iterations; an epoch has ``epoch_length``."""
    settings = train.schedule
    if isinstance(settings, StepScheduleConfig):
        unit = {"share": length, "epochs": epoch_length, "iterations": 1}[settings.unit]
        main = schedule.step(unit, settings.drops, settings.gamma)
    else:
        main = schedule.cosine(length, settings.final)
    return schedule.with_warmup(main, train.warmup.kind, train.warmup.iterations, train.warmup.factor)


def loop_settings(train: TrainConfig, length: int, division: Division, stop_at: int | None = None) -> LoopSettings:
    """Settings of a loop of ``length`` steps that may have to stop before its end."""
    return LoopSettings(
        length=length,
        stop_at=length if stop_at is None else min(stop_at, length),
        batch_size=division.batch_size,
        accumulate=division.accumulate,
        log_every=train.log_every,
        checkpoint_every=train.checkpoint_every,
        eval_every=train.eval_every,
        clip_norm=train.clip_norm,
        precision=PRECISIONS[train.precision],
        best_metric=train.best_metric,
        nonfinite_skips=train.nonfinite_skips,
        oom_retry=train.oom_retry,
        measure_offsets=not train.compile,
    )
