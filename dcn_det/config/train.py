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
    """Learning rate for a global batch of ``train.reference_batch`` images."""
    momentum: BelowOne = 0.9
    """Share of the previous step that is added to the gradient."""
    weight_decay: NonNegativeFloat = 6.25e-5
    """Multiple of the weights that is added to the gradient."""
    decay_bias: bool = False
    """Also decay biases and normalization parameters."""


class AdamWConfig(Section):
    kind: Literal["adamw"]
    lr: PositiveFloat = 1e-4
    """Learning rate for a global batch of ``train.reference_batch`` images."""
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.999)
    """Decay of the moving averages of the gradient and of its square."""
    weight_decay: NonNegativeFloat = 0.05
    """Share of the weights, times the learning rate, that each step subtracts."""
    decay_bias: bool = False
    """Also decay biases and normalization parameters."""


class WarmupConfig(Section):
    kind: Literal["constant", "linear", "none"] = "constant"
    """A constant lower learning rate, one that rises linearly, or no warm-up."""
    iterations: NonNegative = 1000
    """Length in iterations of ``train.reference_batch`` images; at most that of the run."""
    factor: Fraction = 0.1
    """Fraction of the learning rate during warm-up (``constant``) or at its first iteration (``linear``)."""


class StepScheduleConfig(Section):
    kind: Literal["step"] = "step"
    drops: tuple[NonNegativeFloat, ...] = (2 / 3,)
    """Points of the run at which the learning rate is multiplied by ``gamma``."""
    unit: Literal["share", "epochs", "iterations"] = "share"
    """Unit of ``drops``: fractions of the run (``share``), epochs, or iterations of ``reference_batch`` images."""
    gamma: PositiveFloat = 0.1
    """Factor at each drop."""

    @model_validator(mode="after")
    def _check(self) -> StepScheduleConfig:
        if any(first >= second for first, second in pairwise(self.drops)):
            raise ValueError(f"drops {list(self.drops)} must increase")
        if self.unit == "share" and any(drop > 1 for drop in self.drops):
            raise ValueError(f"drops {list(self.drops)} are fractions of the run, from 0 to 1; or set unit")
        return self


class CosineScheduleConfig(Section):
    kind: Literal["cosine"]
    final: Fraction = 0.0
    """Learning rate at the end, as a fraction of the base learning rate."""


class TrainConfig(Section):
    alternatives = (("iterations", "epochs"),)

    iterations: Positive | None = None
    """Length of the run in iterations (optimizer steps) of ``reference_batch`` images; excludes ``epochs``."""
    epochs: Annotated[PositiveFloat, at_most(10**6)] | None = None
    """Length of the run in passes over the training list (which ``data.flip: double`` doubles); default: 8, unless
    ``iterations`` is given."""
    batch_size: BatchSize = 1
    """Images per process and forward pass."""
    accumulate: BatchSize = 1
    """Forward and backward passes per step; the global batch is processes x batch_size x accumulate."""
    reference_batch: Positive = 8
    """Global batch for which the learning rate and all numbers of iterations (length, warm-up, drops) are stated. With
    another global batch, iterations are multiplied by reference_batch / global batch: the run sees as many images."""
    scale_lr: bool = True
    """Scale the learning rate by global batch / reference_batch."""
    optimizer: Annotated[SGDConfig | AdamWConfig, Field(discriminator="kind")] = SGDConfig()
    schedule: Annotated[StepScheduleConfig | CosineScheduleConfig, Field(discriminator="kind")] = StepScheduleConfig()
    warmup: WarmupConfig = WarmupConfig()
    clip_norm: NonNegativeFloat = 0
    """Total gradient norm above which gradients are scaled down; 0 disables clipping."""
    ema_decay: BelowOne = 0
    """Decay of the moving average of the weights, which is evaluated and saved as ``best.pth`` and ``last.pth``;
    0 disables averaging. After t steps, the decay is at most (1 + t) / (10 + t)."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of most layers in training; class scores, box deltas, losses, coordinates and weights remain in
    float32. ``float16`` uses a loss scaler and is for GPUs: torch's float16 convolutions are very slow on a CPU.
    ``test.precision`` is separate."""
    channels_last: bool = True
    """Store feature maps as (N, H, W, C), for which GPUs have faster kernels; on GPUs also in testing."""
    recompute_stages: tuple[Literal["res2", "res3", "res4", "res5"], ...] = ()
    """Activation checkpointing: recompute the blocks of these stages in the backward pass, which saves memory and
    takes time."""
    compile: bool = False
    """Compile backbone and heads with ``torch.compile``; excludes ``recompute_stages``."""
    deterministic: bool = False
    """Results are identical bit for bit on the same machine; nondeterministic operations raise an error."""
    nonfinite_skips: NonNegative = 3
    """Consecutive non-finite steps to tolerate (skipped); the next one ends the run."""
    oom_retry: bool = False
    """On out of memory, halve ``batch_size``, double ``accumulate`` and retry (single-process runs only)."""
    log_every: Positive = 20
    """Iterations between log lines."""
    checkpoint_every: Positive = 1000
    """Iterations between checkpoints."""
    keep_checkpoints: Positive = 2
    """Number of the most recent checkpoints to keep."""
    eval_every: NonNegative = 0
    """Iterations or epochs between evaluations (``eval_unit``); 0 evaluates only at the end."""
    eval_unit: Literal["iterations", "epochs"] = "iterations"
    """Unit of ``eval_every``."""
    best_metric: Text = "AP"
    """Metric that selects ``best.pth``; one of those of the data format."""
    wandb: Text | None = None
    """Weights & Biases project that also receives numbers and images; requires the extra ``wandb``."""

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
            # torch.compile does not support checkpointing with batch-norm statistics that are held while recomputing.
            raise ValueError(
                "compile does not work with recompute_stages; set compile to false, or recompute_stages to []"
            )
        return self
