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
    "BoxAverage",
    "ClassAwareRPN",
    "ClassAwareRPNHead",
    "Config",
    "CosineSchedule",
    "Data",
    "Deform",
    "Detector",
    "Evaluation",
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

Metric = Literal[
    "AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl", "mAP50", "mAP70"
]  # fmt: skip
"""COCO's 12, then Pascal VOC's mean average precision at an IoU of 0.5 and 0.7."""


class Split(Section):
    images: Text | None = None
    """Folder of the images, relative to ``data.root``; not for ``voc``."""
    annotations: Text | None = None
    """COCO-format JSON file, relative to ``data.root``; not for ``voc``."""
    sets: Annotated[tuple[Text, ...], Field(min_length=1)] | None = None
    """Image sets of Pascal VOC, relative to ``data.root``, such as ``VOC2007/ImageSets/Main/trainval.txt``."""


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


class Jitter(Section):
    """Photometric distortion of training images, in random order; a draw of its own for each image and epoch."""

    probability: Fraction = 0.0
    """Share of the images that are distorted; 0 switches it off."""
    brightness: BelowOne = 0.125
    """Pixel values move by up to this share of 255."""
    contrast: BelowOne = 0.5
    """Pixel values are multiplied by a factor in [1 - x, 1 + x]."""
    saturation: BelowOne = 0.5
    """Distance from grey is multiplied by a factor in [1 - x, 1 + x]."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.05
    """The hue turns by up to this share of the circle."""


class Crop(Section):
    """Random crops of training images, before resizing."""

    probability: Fraction = 0.0
    """Share of the images that are cropped; 0 switches it off."""
    min_side: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Shortest sides of a crop, as a share of the image's."""
    min_visible: Fraction = 0.3
    """Boxes of which less is left are dropped. A crop that would leave no box is not made."""


class Data(Section):
    kind: Literal["coco", "voc", "sample"] = "coco"
    """``sample`` is the embedded set of digits over photographs, written to ``root`` when first used."""
    root: Text = "datasets/coco"
    train: Split = Split(images="train2017", annotations="annotations/instances_train2017.json")
    test: Split | None = Split(images="val2017", annotations="annotations/instances_val2017.json")
    """Null trains without evaluation; a file without ``annotations``, such as that of test-dev, can be tested but
    not evaluated."""
    classes: Annotated[tuple[Text, ...], Field(min_length=1)] | None = None
    """Category names; when given they must be those of the annotation file. ``voc``: the 20 unless given."""
    resize: Resize = Resize()
    flip: Literal["double", "random", "none"] = "double"
    """``double`` lists every image twice, once mirrored (the authors' way); ``random`` tosses a coin."""
    short_sides: tuple[Positive, ...] = ()
    """Multi-scale training: each image gets one of these at random instead of ``resize.short_side``."""
    jitter: Jitter = Jitter()
    crop: Crop = Crop()
    repeat_threshold: Fraction = 0.0
    """Repeat-factor sampling (LVIS, Gupta et al., CVPR 2019): images with a class found in less than this share of
    all images are shown more often; 0 shows all equally."""
    empty_images: Literal["keep", "skip"] = "skip"
    """Training images without a usable box."""
    bad_images: Literal["error", "skip"] = "error"
    """Missing or unreadable files, when training: stop, or leave out and count."""
    aspect_grouping: bool = True
    """Batches hold landscape or portrait images, not both."""
    workers: NonNegative = 2
    """Loader processes; 0 loads in the main one."""
    cache: Literal["none", "ram", "disk"] = "none"
    """Keeps decoded and resized training images, shared by all processes of the machine: in memory (``/dev/shm``) or
    in ``cache_folder``. What does not fit is decoded each time."""
    cache_folder: Text | None = None
    """Where ``cache: disk`` keeps them; ``.cache`` in ``root`` when not given."""

    @model_validator(mode="after")
    def _check(self) -> Data:
        for name, split in (("train", self.train), ("test", self.test)):
            if split is None:
                continue
            if self.kind == "voc" and (split.sets is None or split.images or split.annotations):
                raise ValueError(f"{name} of voc data has sets, and neither images nor annotations")
            if self.kind != "voc" and (split.sets or split.images is None or split.annotations is None):
                raise ValueError(f"{name} of {self.kind} data has images and annotations, and no sets")
        classes = self.classes or ()
        twice = sorted({name for name in classes if classes.count(name) > 1})
        if twice:
            raise ValueError(f"classes has '{twice[0]}' twice; name each category once")
        above = [side for side in self.short_sides if side > self.resize.max_side]
        if above:
            raise ValueError(f"short_sides has {above[0]}, above resize.max_side {self.resize.max_side}; raise that")
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
    drops: tuple[NonNegativeFloat, ...] = (2 / 3,)
    """Points of the run where the learning rate is multiplied by ``gamma``."""
    unit: Literal["share", "epochs", "iterations"] = "share"
    """What ``drops`` count: shares of the run's length, epochs or iterations."""
    gamma: PositiveFloat = 0.1

    @model_validator(mode="after")
    def _check(self) -> StepSchedule:
        if any(first >= second for first, second in pairwise(self.drops)):
            raise ValueError(f"drops {list(self.drops)} must increase")
        if self.unit == "share" and any(drop > 1 for drop in self.drops):
            raise ValueError(f"drops {list(self.drops)} are shares of the run, from 0 to 1; or set unit")
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
    """Images per process and forward pass."""
    accumulate: Positive = 1
    """Forward and backward passes per step; the global batch is processes x batch_size x accumulate."""
    reference_batch: Positive = 8
    """Global batch the learning rate is stated for."""
    scale_lr: bool = True
    """Scale the learning rate linearly with global batch / reference_batch."""
    optimizer: Annotated[SGD | AdamW, Field(discriminator="kind")] = SGD()
    schedule: Annotated[StepSchedule | CosineSchedule, Field(discriminator="kind")] = StepSchedule()
    warmup: Warmup = Warmup()
    clip_norm: NonNegativeFloat = 0
    """Gradients are scaled down to this total norm; 0 leaves them."""
    ema_decay: BelowOne = 0
    """Keeps an exponential moving average of the weights, which is evaluated and goes into ``best.pth`` and
    ``last.pth``; 0 keeps none. It starts quickly: after t steps the decay is at most (1 + t) / (10 + t)."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of most layers; losses, coordinates and the weights themselves stay in float32. ``float16``, which comes with a
    loss scaler, is for GPUs: torch's convolutions are very slow in it on a CPU."""
    channels_last: bool = True
    recompute_stages: tuple[Literal["res2", "res3", "res4", "res5"], ...] = ()
    """Activation checkpointing: the blocks of these stages are computed again in the backward pass instead of being
    kept, which saves memory and costs time."""
    compile: bool = False
    """Compile backbone and heads with ``torch.compile``."""
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
    best_metric: Metric = "AP"
    """Decides which checkpoint is kept as the best."""
    wandb: Text | None = None
    """Weights & Biases project that the numbers and pictures also go to; needs the extra ``wandb``."""

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


class BoxAverage(Section):
    """Iterative bounding-box average (Gidaris and Komodakis, ICCV 2015), for two-stage detectors."""

    iterations: Positive = 2
    """How often the head scores and regresses; 1 only votes."""
    prune_iou: Fraction = 0.95
    """Of boxes of a class that overlap more, only the best goes through the head again ..."""
    max_boxes: Positive = 1000
    """... and of those at most this many an image."""
    vote_iou: Fraction | None = 0.5
    """A kept box becomes the score-weighted mean of its class's candidates that overlap it at least this much;
    null leaves it as it is."""


class Test(Section):
    alternatives = (("resize", "scales"),)

    resize: Resize | None = None
    """Size of the input; as in training when neither this nor ``scales`` is given."""
    scales: Annotated[tuple[Resize, ...], Field(min_length=1)] | None = None
    """Sizes at which the whole detector runs; what it finds at each is united before suppression."""
    flip: bool = False
    """Runs on the mirrored image, too."""
    batch_size: Positive = 1
    score_threshold: Fraction = 1e-3
    """Boxes need more."""
    nms: Literal["hard", "linear", "gaussian"] = "hard"
    """Drop boxes that overlap a better one, or lower their scores (soft-NMS, Bodla et al., ICCV 2017)."""
    nms_iou: Fraction = 0.3
    """Boxes that overlap a better one by more are dropped, or lowered when ``linear``."""
    nms_sigma: PositiveFloat = 0.6
    """``gaussian`` multiplies scores by exp(-IoU^2 / nms_sigma)."""
    nms_class_agnostic: bool = False
    """Whether boxes of different classes suppress each other."""
    max_detections: Positive = 100
    """Of an image, all classes together."""
    box_average: BoxAverage | None = None

    @model_validator(mode="after")
    def _check(self) -> Test:
        if self.resize is not None and self.scales is not None:
            raise ValueError("give resize or scales, not both; remove one or set it to null")
        return self


class Evaluation(Section):
    backend: Literal["auto", "hotcoco", "pycocotools"] = "auto"
    """What computes COCO's metrics; ``auto``: hotcoco when installed, else pycocotools."""
    voc_ap: Literal["11-point", "area"] = "11-point"
    """Average precision of Pascal VOC data: of 2007 (the paper) or since 2010."""


class Expected(Section):
    """A number this config should reach."""

    metric: Metric
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
    evaluation: Evaluation = Evaluation()
    expected: tuple[Expected, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Config:
        voc = self.data.kind == "voc"
        if self.data.test is not None and self.train.best_metric.startswith("mAP") != voc:
            measured = "mAP50 or mAP70" if voc else "COCO's metrics, such as AP"
            raise ValueError(
                f"train.best_metric {self.train.best_metric} is not measured on {self.data.kind} data; "
                f"choose {measured}"
            )
        return self
