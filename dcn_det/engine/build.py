"""From settings to optimizer, schedule and loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from dcn_det.config.schema import SGD, StepSchedule, Train
from dcn_det.engine import schedule
from dcn_det.engine.optim import parameter_groups
from dcn_det.engine.trainer import LoopSettings

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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
            return f"{self.effective:g} (as given, train.scale_lr is off; global batch {self.global_batch})"
        return (
            f"{self.effective:g} = {self.base:g} x global batch {self.global_batch} / "
            f"reference batch {self.reference_batch}; gradients are averaged over the global batch"
        )


def learning_rate(train: Train, world_size: int) -> LearningRate:
    return LearningRate(train.optimizer.lr, train.reference_batch, train.batch_size * world_size, scaled=train.scale_lr)


def build_optimizer(
    train: Train, model: nn.Module, lr: float, multipliers: Mapping[str, float]
) -> torch.optim.Optimizer:
    settings = train.optimizer
    groups = parameter_groups(model, lr, settings.weight_decay, settings.decay_bias, multipliers)
    if isinstance(settings, SGD):
        return torch.optim.SGD(groups, lr=lr, momentum=settings.momentum)
    return torch.optim.AdamW(groups, lr=lr, betas=settings.betas)


def run_length(train: Train, iterations_per_epoch: int) -> int:
    """Optimizer steps of the whole run."""
    if train.iterations is not None:
        return train.iterations
    assert train.epochs is not None
    return max(1, round(train.epochs * iterations_per_epoch))


def build_schedule(train: Train, length: int) -> schedule.Factor:
    settings = train.schedule
    if isinstance(settings, StepSchedule):
        main = schedule.step(length, settings.drops, settings.gamma)
    else:
        main = schedule.cosine(length, settings.final)
    return schedule.with_warmup(main, train.warmup.kind, train.warmup.iterations, train.warmup.factor)


def loop_settings(train: Train, length: int, stop_at: int | None = None) -> LoopSettings:
    """Settings of a loop of ``length`` steps that may have to stop before its end."""
    return LoopSettings(
        length=length,
        stop_at=length if stop_at is None else min(stop_at, length),
        log_every=train.log_every,
        checkpoint_every=train.checkpoint_every,
        eval_every=train.eval_every,
        clip_norm=train.clip_norm,
        precision=PRECISIONS[train.precision],
        best_metric=train.best_metric,
    )
