"""Every setting there is: type, unit, default and meaning.

Values are frozen and unknown keys are refused. Defaults are the paper's recipe for ResNet-101 on COCO (Dai et
al., ICCV 2017) and, where the paper is silent, the authors' released code.

Rules between keys live here too, each in the block that holds all of its keys. What depends on more than the
settings (names of residual blocks, categories of a data set) is checked where that is known.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from dcn_det.config.model import (
    RFCN,
    RPN,
    AnchorHead,
    Anchors,
    Backbone,
    ClassAwareRPN,
    ClassAwareRPNHead,
    Deform,
    Detector,
    FasterRCNN,
    FasterRCNNHead,
    Model,
    Preprocess,
    RFCNHead,
    RoIHead,
)
from dcn_det.config.section import (
    BelowOne,
    Fraction,
    NonNegative,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    Section,
    Text,
)

__all__ = [
    "RFCN",
    "RPN",
    "SGD",
    "AdamW",
    "AnchorHead",
    "Anchors",
    "Backbone",
    "ClassAwareRPN",
    "ClassAwareRPNHead",
    "Config",
    "CosineSchedule",
    "Data",
    "Deform",
    "Detector",
    "Expected",
    "FasterRCNN",
    "FasterRCNNHead",
    "Metric",
    "Model",
    "Preprocess",
    "RFCNHead",
    "Resize",
    "RoIHead",
    "Section",
    "Split",
    "StepSchedule",
    "Test",
    "Train",
    "Warmup",
]

Metric = Literal["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]


class Split(Section):
    images: Text
    """Folder of the images, relative to ``data.root``."""
    annotations: Text
    """COCO-format JSON file, relative to ``data.root``."""


class Resize(Section):
    short_side: Positive = 600
    """Pixels; the shorter side is brought to this ..."""
    max_side: Positive = 1000
    """... unless the longer one would exceed this, which then decides."""

    @model_validator(mode="after")
    def _check(self) -> Resize:
        if self.max_side < self.short_side:
            raise ValueError(f"max_side {self.max_side} is below short_side {self.short_side}; raise it")
        return self


class Data(Section):
    kind: Literal["coco", "sample"] = "coco"
    """``sample`` is the embedded set of digits over photographs, written to ``root`` when first used."""
    root: Text = "datasets/coco"
    train: Split = Split(images="train2017", annotations="annotations/instances_train2017.json")
    test: Split = Split(images="val2017", annotations="annotations/instances_val2017.json")
    classes: Annotated[tuple[Text, ...], Field(min_length=1)] | None = None
    """Category names; when given they must be those of the annotation file."""
    resize: Resize = Resize()
    flip: Literal["double", "random", "none"] = "double"
    """``double`` lists every image twice, once mirrored (the authors' way); ``random`` tosses a coin."""
    empty_images: Literal["keep", "skip"] = "skip"
    """Training images without a usable box."""
    bad_images: Literal["error", "skip"] = "error"
    """Missing or unreadable files, when training: stop, or leave out and count."""
    aspect_grouping: bool = True
    """Batches hold landscape or portrait images, not both."""
    workers: NonNegative = 2
    """Loader processes; 0 loads in the main one."""

    @model_validator(mode="after")
    def _check(self) -> Data:
        classes = self.classes or ()
        twice = sorted({name for name in classes if classes.count(name) > 1})
        if twice:
            raise ValueError(f"classes has '{twice[0]}' twice; name each category once")
        return self


class SGD(Section):
    kind: Literal["sgd"] = "sgd"
    lr: PositiveFloat = 0.004
    """For a global batch of ``train.reference_batch`` images."""
    momentum: BelowOne = 0.9
    weight_decay: NonNegativeFloat = 6.25e-5
    decay_bias: bool = False
    """Whether weight decay reaches biases and normalisation parameters."""


class AdamW(Section):
    kind: Literal["adamw"]
    lr: PositiveFloat = 1e-4
    """For a global batch of ``train.reference_batch`` images."""
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.999)
    weight_decay: NonNegativeFloat = 0.05
    decay_bias: bool = False
    """Whether weight decay reaches biases and normalisation parameters."""


class Warmup(Section):
    kind: Literal["constant", "linear", "none"] = "constant"
    iterations: NonNegative = 1000
    factor: Fraction = 0.1
    """Learning rate of the warm-up, or of its first iteration when linear, as a share of the base."""


class StepSchedule(Section):
    kind: Literal["step"] = "step"
    drops: tuple[Fraction, ...] = (2 / 3,)
    """Points of the run, as shares of its length, where the learning rate is multiplied by ``gamma``."""
    gamma: PositiveFloat = 0.1

    @model_validator(mode="after")
    def _check(self) -> StepSchedule:
        if any(first >= second for first, second in pairwise(self.drops)):
            raise ValueError(f"drops {list(self.drops)} must increase")
        return self


class CosineSchedule(Section):
    kind: Literal["cosine"]
    final: Fraction = 0.0
    """Learning rate at the end as a share of the base."""


class Train(Section):
    alternatives = (("iterations", "epochs"),)

    iterations: Positive | None = None
    """Length of the run in optimizer steps; give this or ``epochs``."""
    epochs: PositiveFloat | None = None
    """Length of the run in passes over the training list (which ``data.flip: double`` doubles); 8 when
    neither is given."""
    batch_size: Positive = 1
    """Images per process and step."""
    reference_batch: Positive = 8
    """Global batch the learning rate is stated for."""
    scale_lr: bool = True
    """Scale the learning rate linearly with global batch / reference_batch."""
    optimizer: Annotated[SGD | AdamW, Field(discriminator="kind")] = SGD()
    schedule: Annotated[StepSchedule | CosineSchedule, Field(discriminator="kind")] = StepSchedule()
    warmup: Warmup = Warmup()
    clip_norm: NonNegativeFloat = 0
    """Gradients are scaled down to this total norm; 0 leaves them."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    channels_last: bool = True
    log_every: Positive = 20
    """Iterations between log lines."""
    checkpoint_every: Positive = 1000
    """Iterations between checkpoints."""
    keep_checkpoints: Positive = 2
    eval_every: NonNegative = 0
    """Iterations between evaluations during training; 0 evaluates only at the end."""
    best_metric: Metric = "AP"
    """Decides which checkpoint is kept as the best."""

    @model_validator(mode="before")
    @classmethod
    def _default_length(cls, data: Any) -> Any:
        if isinstance(data, dict) and not data.keys() & {"iterations", "epochs"}:
            return {**data, "epochs": 8}
        return data

    @model_validator(mode="after")
    def _check(self) -> Train:
        if (self.iterations is None) == (self.epochs is None):
            raise ValueError("give exactly one of iterations and epochs; remove the other or set it to null")
        return self


class Test(Section):
    resize: Resize | None = None
    """As in training when not given."""
    batch_size: Positive = 1
    score_threshold: Fraction = 1e-3
    nms_iou: Fraction = 0.3
    max_detections: Positive = 100


class Expected(Section):
    """A number this config should reach."""

    metric: Metric | Literal["mAP50", "mAP70"]
    """COCO's, or Pascal VOC's mean average precision at an IoU of 0.5 or 0.7."""
    value: float
    """A share: 0.331 for a published 33.1 percent."""
    tolerance: NonNegativeFloat = 0.0
    """How far a measurement may be off, as a share."""
    source: Text
    """Where the number stands: the table of the paper, or the command that gave it."""


class Config(Section):
    version: Literal[1] = 1
    name: str = ""
    """Taken from the file name when empty."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    device: Literal["auto", "cpu", "cuda"] | Annotated[str, Field(pattern="^cuda:[0-9]+$")] = "auto"
    """``auto`` takes a CUDA device when there is one; ``cuda:N`` is the N-th, from 0."""
    model: Annotated[Model, Field(discriminator="kind")] = FasterRCNN()
    data: Data = Data()
    train: Train = Train()
    test: Test = Test()
    expected: tuple[Expected, ...] = ()
