"""Settings of training: length, optimizer, schedule, precision, logging."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from dcn_det.config.section import (
    BatchSize,
    BelowOne,
    Fraction,
    NonNegative,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    Section,
    Text,
    at_most,
)


class SGDConfig(Section):
    kind: Literal["sgd"] = "sgd"
    lr: PositiveFloat = 0.004
    """For a global batch of ``train.reference_batch`` images."""
    momentum: BelowOne = 0.9
    weight_decay: NonNegativeFloat = 6.25e-5
    decay_bias: bool = False
    """Whether weight decay reaches biases and normalisation parameters."""


class AdamWConfig(Section):
    kind: Literal["adamw"]
    lr: PositiveFloat = 1e-4
    """For a global batch of ``train.reference_batch`` images."""
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.999)
    weight_decay: NonNegativeFloat = 0.05
    decay_bias: bool = False
    """Whether weight decay reaches biases and normalisation parameters."""


class WarmupConfig(Section):
    kind: Literal["constant", "linear", "none"] = "constant"
    iterations: NonNegative = 1000
    """Shortened to a tenth of the run if it is more than half of it."""
    factor: Fraction = 0.1
    """Learning rate of the warm-up, or of its first iteration when linear, as a share of the base."""


class StepScheduleConfig(Section):
    kind: Literal["step"] = "step"
    drops: tuple[NonNegativeFloat, ...] = (2 / 3,)
    """Points of the run where the learning rate is multiplied by ``gamma``."""
    unit: Literal["share", "epochs", "iterations"] = "share"
    """What ``drops`` count: shares of the run's length, epochs or iterations."""
    gamma: PositiveFloat = 0.1

    @model_validator(mode="after")
    def _check(self) -> StepScheduleConfig:
        if any(first >= second for first, second in pairwise(self.drops)):
            raise ValueError(f"drops {list(self.drops)} must increase")
        if self.unit == "share" and any(drop > 1 for drop in self.drops):
            raise ValueError(f"drops {list(self.drops)} are shares of the run, from 0 to 1; or set unit")
        return self


class CosineScheduleConfig(Section):
    kind: Literal["cosine"]
    final: Fraction = 0.0
    """Learning rate at the end as a share of the base."""


class TrainConfig(Section):
    alternatives = (("iterations", "epochs"),)

    iterations: Positive | None = None
    """Length of the run in optimizer steps; give this or ``epochs``."""
    epochs: Annotated[PositiveFloat, at_most(10**6)] | None = None
    """Length of the run in passes over the training list (which ``data.flip: double`` doubles); 8 when
    neither is given."""
    batch_size: BatchSize = 1
    """Images per process and forward pass."""
    accumulate: BatchSize = 1
    """Forward and backward passes per step; the global batch is processes x batch_size x accumulate."""
    reference_batch: Positive = 8
    """Global batch the learning rate is stated for."""
    scale_lr: bool = True
    """Scale the learning rate linearly with global batch / reference_batch."""
    optimizer: Annotated[SGDConfig | AdamWConfig, Field(discriminator="kind")] = SGDConfig()
    schedule: Annotated[StepScheduleConfig | CosineScheduleConfig, Field(discriminator="kind")] = StepScheduleConfig()
    warmup: WarmupConfig = WarmupConfig()
    clip_norm: NonNegativeFloat = 0
    """Gradients are scaled down to this total norm; 0 leaves them."""
    ema_decay: BelowOne = 0
    """Keeps an exponential moving average of the weights, which is evaluated and goes into ``best.pth`` and
    ``last.pth``; 0 keeps none. It starts quickly: after t steps the decay is at most (1 + t) / (10 + t)."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of most layers; losses, coordinates and the weights themselves stay in float32. ``float16``, which comes with a
    loss scaler, is for GPUs: torch's convolutions are very slow in it on a CPU."""
    channels_last: bool = True
    """Store maps as (N, H, W, C), the layout of a GPU's fast kernels; on a GPU in testing, too."""
    recompute_stages: tuple[Literal["res2", "res3", "res4", "res5"], ...] = ()
    """Activation checkpointing: the blocks of these stages are computed again in the backward pass instead of being
    kept, which saves memory and costs time."""
    compile: bool = False
    """Compile backbone and heads with ``torch.compile``; not with ``recompute_stages``."""
    deterministic: bool = False
    """Repeatable to the bit on the same machine; an operation that cannot be is an error."""
    nonfinite_skips: NonNegative = 3
    """So many steps in a row whose loss or gradient is not finite are skipped; the next one ends the run."""
    oom_retry: bool = False
    """Out of GPU memory: halve ``batch_size``, double ``accumulate`` and try again (runs of one process)."""
    log_every: Positive = 20
    """Iterations between log lines."""
    checkpoint_every: Positive = 1000
    """Iterations between checkpoints."""
    keep_checkpoints: Positive = 2
    eval_every: NonNegative = 0
    """Iterations between evaluations during training; 0 evaluates only at the end."""
    best_metric: Text = "AP"
    """Decides which checkpoint is kept as the best; one of the metrics that are measured on the kind of data."""
    wandb: Text | None = None
    """Weights & Biases project that the numbers and pictures also go to; needs the extra ``wandb``."""

    @model_validator(mode="before")
    @classmethod
    def _default_length(cls, data: Any) -> Any:
        if isinstance(data, dict) and not data.keys() & {"iterations", "epochs"}:
            return {**data, "epochs": 8}
        return data

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        if (self.iterations is None) == (self.epochs is None):
            raise ValueError("give exactly one of iterations and epochs; remove the other or set it to null")
        if self.compile and self.recompute_stages:
            # torch.compile refuses a checkpoint that holds the statistics of batch norm while recomputing.
            raise ValueError(
                "compile does not work with recompute_stages; set compile to false, or recompute_stages to []"
            )
        return self
