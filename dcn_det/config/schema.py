"""Every setting there is: type, unit, default and meaning.

Values are frozen and unknown keys are refused. Defaults are the paper's recipe for ResNet-101 on COCO (Dai et
al., ICCV 2017) and, where the paper is silent, the authors' released code.

Rules between keys live here too, each in the block that holds all of its keys. What depends on more than the
settings (names of residual blocks, categories of a data set) is checked where that is known.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Text = Annotated[str, Field(min_length=1)]
Triple = tuple[float, float, float]
Metric = Literal[
    "AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl", "mAP50", "mAP70"
]  # fmt: skip
"""COCO's 12, then Pascal VOC's."""


class Section(BaseModel):
    """Base of every block of settings: immutable, closed, strictly typed.

    Nothing is converted except an integer where a float is wanted and a list where a tuple is.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        validate_default=True,
        use_attribute_docstrings=True,
    )

    alternatives: ClassVar[tuple[tuple[str, ...], ...]] = ()
    """Groups of keys of which one is given; when files inherit, giving one takes the place of the others."""

    @classmethod
    def variants(cls, key: str) -> dict[str, type[Section]]:
        """The classes that the block ``key`` can be, by ``kind``; empty unless ``kind`` decides its keys."""
        field = cls.model_fields.get(key)
        if field is None or field.discriminator != "kind":
            return {}
        return {get_args(c.model_fields["kind"].annotation)[0]: c for c in get_args(field.annotation)}

    @classmethod
    def default_kind(cls, key: str) -> str:
        """What the block ``key``, which has variants, is when it names no ``kind``."""
        return str(cls.model_fields[key].default.kind)

    @model_validator(mode="before")
    @classmethod
    def _read_plain(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        read = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
        for key, value in read.items():
            if isinstance(value, dict) and "kind" not in value and cls.variants(key):
                read[key] = {"kind": cls.default_kind(key), **value}
        return read


class Preprocess(Section):
    """How the backbone's weights expect their input; travels with the weights."""

    channel_order: Literal["rgb", "bgr"] = "rgb"
    mean: Triple = (123.15, 115.90, 103.06)
    """Subtracted from pixel values 0-255, in the order red, green, blue whatever ``channel_order`` is."""
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (1.0, 1.0, 1.0)
    """Divides after the subtraction, in the order red, green, blue."""


class Deform(Section):
    """Deformable convolution in the backbone."""

    blocks: tuple[Text, ...] = ()
    """Names of residual blocks whose 3x3 convolution is deformable, such as ``res5a`` or ``res4b22``."""
    kind: Literal["v1", "v2"] = "v1"
    """v1 learns offsets; v2 learns a modulation mask as well."""
    offset_groups: Positive = 4
    """Channels are divided into this many groups, each with offsets of its own."""
    offset_dilation: Literal["host"] | Positive = "host"
    """Dilation of the 3x3 convolution that predicts the offsets; ``host``: that of the deformable one."""
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
    """3x3 stride-2 max pooling: unpadded, rounding up (Caffe), or padded by one, rounding down (PyTorch)."""
    norm: Literal["frozen_bn", "bn", "sync_bn", "gn"] = "frozen_bn"
    norm_eps: PositiveFloat = 1e-5
    frozen_stages: Annotated[int, Field(ge=0, le=5)] = 2
    """Leading stages that are not trained: 0 none, 1 the stem, 2 the stem and res2, ... 5 all."""
    res5_stride: Literal[1, 2] = 1
    """1 keeps the output at stride 16 (the paper), 2 goes to 32."""
    res5_dilation: Positive | tuple[Positive, Positive, Positive] = 2
    """Dilation of the 3x3 convolutions of res5, one number or one per block."""
    deform: Deform = Deform()
    weights: Text = "torchvision"
    """``none``, ``torchvision`` (ImageNet weights by name, downloaded once), or a local file."""
    preprocess: Preprocess = Preprocess()

    @model_validator(mode="after")
    def _check(self) -> Backbone:
        if self.res5_stride == 2 and "res5_dilation" not in self.model_fields_set:
            raise ValueError(
                f"res5_stride 2 goes with a stated res5_dilation (1 in an ordinary ResNet); its default "
                f"{self.res5_dilation} makes up for a stride of 1"
            )
        return self


class Anchors(Section):
    base_size: Positive = 16
    """Pixels; side of the anchor at scale 1 and ratio 1."""
    scales: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (4, 8, 16, 32)
    ratios: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (0.5, 1, 2)
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

    @model_validator(mode="after")
    def _check(self) -> RPN:
        if self.negative_iou > self.positive_iou:
            raise ValueError(
                f"negative_iou {self.negative_iou:g} is above positive_iou {self.positive_iou:g}; lower it"
            )
        if self.post_nms > self.pre_nms:
            raise ValueError(f"post_nms {self.post_nms} is above pre_nms {self.pre_nms}; lower it")
        return self


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
    hidden_init: Literal["normal", "he"] = "normal"
    """How the layers before the outputs start: N(0, 0.01), or He's rule for narrow heads trained from scratch."""
    class_agnostic: bool = False
    """One set of box deltas for all classes instead of one per class."""
    batch_per_image: Positive = 128
    positive_fraction: Fraction = 0.25
    positive_iou: Fraction = 0.5
    negative_iou: tuple[Fraction, Fraction] = (0.1, 0.5)
    """Background RoIs have their best IoU in [low, high)."""
    box_stds: tuple[PositiveFloat, PositiveFloat, PositiveFloat, PositiveFloat] = (0.1, 0.1, 0.2, 0.2)
    """Box targets (dx, dy, dw, dh) are divided by these."""
    sigma: PositiveFloat = 1
    """Smooth-L1 is quadratic below 1 / sigma^2."""
    loss_weight: NonNegativeFloat = 1.0

    @model_validator(mode="after")
    def _check(self) -> FasterRCNNHead:
        low, high = self.negative_iou
        if low >= high:
            raise ValueError(f"negative_iou [{low:g}, {high:g}) is empty; its first number must be the smaller")
        if high > self.positive_iou:
            raise ValueError(f"negative_iou ends at {high:g}, above positive_iou {self.positive_iou:g}; lower its end")
        return self


class Model(Section):
    kind: Literal["faster_rcnn"] = "faster_rcnn"
    backbone: Backbone = Backbone()
    rpn: RPN = RPN()
    head: FasterRCNNHead = FasterRCNNHead()


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
    model: Model = Model()
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
