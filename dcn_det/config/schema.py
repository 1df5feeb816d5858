"""Every setting there is: type, unit, default and meaning.

Values are frozen and unknown keys are refused. Defaults are the paper's recipe for ResNet-101 on COCO (Dai et al.,
ICCV 2017) and, where the paper is silent, the authors' released code.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Triple = tuple[float, float, float]


class Section(BaseModel):
    """Base of every block of settings: immutable, closed, strictly typed."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True)


class Preprocess(Section):
    """How the backbone's weights expect their input; travels with the weights."""

    channel_order: Literal["rgb", "bgr"] = "rgb"
    mean: Triple = (123.15, 115.90, 103.06)
    """Subtracted per channel, in the order red, green, blue whatever ``channel_order`` is; pixel values are 0-255."""
    std: Triple = (1.0, 1.0, 1.0)
    """Divides after the subtraction, in the order red, green, blue."""


class Deform(Section):
    """Deformable convolution in the backbone."""

    blocks: tuple[str, ...] = ()
    """Names of residual blocks whose 3x3 convolution is deformable, such as ``res5a`` or ``res4b22``."""
    kind: Literal["v1", "v2"] = "v1"
    """v1 learns offsets; v2 learns a modulation mask as well."""
    offset_groups: Positive = 4
    """Channels are divided into this many groups, each with offsets of its own."""
    offset_dilation: Literal["host"] | Positive = "host"
    """Dilation of the 3x3 convolution that predicts the offsets; ``host`` takes that of the deformable one."""
    border: Literal["zeros", "dcn_v1"] = "zeros"
    """Sampling beyond the map: zero padding, or the rule of the authors' first release."""
    lr_mult: NonNegativeFloat = 1.0
    """Learning-rate multiplier of the offset branches."""


class Backbone(Section):
    kind: Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"] = "resnet101"
    width: Positive = 64
    """Channels of the 3x3 convolutions of res2; the later stages follow in proportion."""
    stem_width: Positive = 64
    """Channels of the first convolution."""
    stride_on: Literal["first_1x1", "3x3"] = "first_1x1"
    """Which convolution of a bottleneck carries the stride: the first 1x1 (Caffe) or the 3x3 (PyTorch)."""
    stem_pool: Literal["ceil", "pad"] = "ceil"
    """3x3 stride-2 max pooling: unpadded with ceil rounding (Caffe), or padded by one with floor (PyTorch)."""
    norm: Literal["frozen_bn", "bn", "sync_bn", "gn"] = "frozen_bn"
    norm_eps: PositiveFloat = 1e-5
    frozen_stages: Annotated[int, Field(ge=0, le=5)] = 2
    """Leading stages that are not trained: 0 none, 1 the stem, 2 the stem and res2, ... 5 all."""
    res5_stride: Literal[1, 2] = 1
    """1 keeps the output at stride 16 (the paper), 2 goes to 32."""
    res5_dilation: Positive | tuple[Positive, Positive, Positive] = 2
    """Dilation of the 3x3 convolutions of res5, one number or one per block."""
    deform: Deform = Deform()
    weights: str = "torchvision"
    """``none``, ``torchvision`` (ImageNet weights by name, downloaded once), or a local file."""
    preprocess: Preprocess = Preprocess()


class Anchors(Section):
    base_size: Positive = 16
    scales: tuple[PositiveFloat, ...] = (4, 8, 16, 32)
    ratios: tuple[PositiveFloat, ...] = (0.5, 1, 2)
    """Height over width."""


class RPN(Section):
    channels: Positive = 512
    anchors: Anchors = Anchors()
    positive_iou: Fraction = 0.7
    negative_iou: Fraction = 0.3
    batch_per_image: Positive = 256
    positive_fraction: Fraction = 0.5
    pre_nms: Positive = 6000
    post_nms: Positive = 300
    nms_iou: Fraction = 0.7
    min_size: NonNegativeFloat = 0
    """Proposals with a side shorter than this (original pixels) are dropped."""
    sigma: PositiveFloat = 3
    """Smooth-L1 is quadratic below 1 / sigma^2."""
    loss_weight: NonNegativeFloat = 1.0


class FasterRCNNHead(Section):
    channels: Positive = 256
    """Width of the 1x1 convolution between res5 and pooling."""
    pooling: Literal["max", "bilinear", "deformable"] = "max"
    """Max RoI pooling (the plain baseline), the deformable operator with its offsets off, or on."""
    pooled_size: Positive = 7
    samples_per_bin: Positive = 4
    """Bilinear samples along each axis of a bin (``bilinear`` and ``deformable``)."""
    offset_std: NonNegativeFloat = 0.1
    """Factor on the predicted, RoI-relative offsets (gamma in the paper)."""
    offset_lr_mult: NonNegativeFloat = 0.01
    hidden: Positive = 1024
    """Width of the two fully connected layers."""
    class_agnostic: bool = False
    """One set of box deltas for all classes instead of one per class."""
    batch_per_image: Positive = 128
    positive_fraction: Fraction = 0.25
    positive_iou: Fraction = 0.5
    negative_iou: tuple[Fraction, Fraction] = (0.1, 0.5)
    """Background RoIs have their best IoU in [low, high)."""
    box_stds: tuple[float, float, float, float] = (0.1, 0.1, 0.2, 0.2)
    sigma: PositiveFloat = 1
    loss_weight: NonNegativeFloat = 1.0


class Model(Section):
    kind: Literal["faster_rcnn"] = "faster_rcnn"
    backbone: Backbone = Backbone()
    rpn: RPN = RPN()
    head: FasterRCNNHead = FasterRCNNHead()


class Split(Section):
    images: str
    """Folder of the images, relative to ``data.root``."""
    annotations: str
    """COCO-format JSON file, relative to ``data.root``."""


class Resize(Section):
    short_side: Positive = 600
    """Pixels; the shorter side is brought to this ..."""
    max_side: Positive = 1000
    """... unless the longer one would exceed this, which then decides."""

    @model_validator(mode="after")
    def _check(self) -> Resize:
        if self.max_side < self.short_side:
            raise ValueError(f"max_side {self.max_side} is below short_side {self.short_side}")
        return self


class Data(Section):
    kind: Literal["coco", "sample"] = "coco"
    """``sample`` is the embedded set of digits over photographs, written to ``root`` when first used."""
    root: str = "datasets/coco"
    train: Split = Split(images="train2017", annotations="annotations/instances_train2017.json")
    test: Split = Split(images="val2017", annotations="annotations/instances_val2017.json")
    classes: tuple[str, ...] | None = None
    """Category names; when given they must be those of the annotation file."""
    resize: Resize = Resize()
    flip: Literal["double", "random", "none"] = "double"
    """``double`` lists every image twice, mirrored the second time (the authors' way); ``random`` tosses a coin."""
    empty_images: Literal["keep", "skip"] = "skip"
    """Training images without a usable box."""
    bad_images: Literal["error", "skip"] = "error"
    """Missing or unreadable files, when training: stop, or leave out and count."""
    aspect_grouping: bool = True
    """Batches hold landscape or portrait images, not both."""
    workers: NonNegative = 2
    """Loader processes; 0 loads in the main one."""


class SGD(Section):
    kind: Literal["sgd"] = "sgd"
    lr: PositiveFloat = 0.004
    """For a global batch of ``train.reference_batch`` images."""
    momentum: Fraction = 0.9
    weight_decay: NonNegativeFloat = 6.25e-5
    decay_bias: bool = False
    """Whether weight decay reaches biases and normalisation parameters."""


class AdamW(Section):
    kind: Literal["adamw"]
    lr: PositiveFloat = 1e-4
    """For a global batch of ``train.reference_batch`` images."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
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


class CosineSchedule(Section):
    kind: Literal["cosine"]
    final: Fraction = 0.0
    """Learning rate at the end as a share of the base."""


class Train(Section):
    iterations: Positive | None = None
    """Length of the run in optimizer steps; give this or ``epochs``."""
    epochs: PositiveFloat | None = None
    """Length of the run in passes over the training list (flip-doubled when ``data.flip`` is ``double``)."""
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
    best_metric: str = "AP"
    """Decides which checkpoint is kept as the best."""

    @model_validator(mode="after")
    def _check(self) -> Train:
        if (self.iterations is None) == (self.epochs is None):
            raise ValueError("give exactly one of iterations and epochs")
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

    metric: str
    value: float
    tolerance: NonNegativeFloat = 0.0
    source: str


class Config(Section):
    version: Literal[1] = 1
    name: str = ""
    """Taken from the file name when empty."""
    seed: NonNegative = 0
    device: str = "auto"
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N``."""
    model: Model = Model()
    data: Data = Data()
    train: Train = Train(epochs=8)
    test: Test = Test()
    expected: tuple[Expected, ...] = ()
