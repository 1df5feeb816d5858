"""The settings of models: backbones, proposals, heads and the detectors made of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from dcn_det.config.layouts import contradictions, layout_of
from dcn_det.config.registry import BACKBONES, OneOf
from dcn_det.config.section import (
    Fraction,
    NonNegative,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    Section,
    Text,
    Triple,
    wrong,
)


class PreprocessConfig(Section):
    """How the backbone's weights expect their input; travels with the weights."""

    channel_order: Literal["rgb", "bgr"] = "rgb"
    mean: Triple = (123.15, 115.90, 103.06)
    """Subtracted from pixel values 0-255, in the order red, green, blue whatever ``channel_order`` is."""
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (1.0, 1.0, 1.0)
    """Divides after the subtraction, in the order red, green, blue."""


class DeformConfig(Section):
    """Deformable convolution in the backbone."""

    blocks: tuple[Text, ...] = ()
    """Names of residual blocks whose 3x3 convolutions are deformable, such as ``res5a`` or ``res4b22``; of
    ``aligned_inception_resnet`` also single convolutions, such as ``res5a_branch2c``."""
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


class BackboneConfig(Section):
    """What every backbone has; base of the sections that ``register_backbone`` takes."""

    kind: str
    weights: Text = "none"
    """``none``, or a local file."""
    preprocess: PreprocessConfig = PreprocessConfig()


class ResidualBackboneConfig(BackboneConfig):
    """What residual networks share.

    ``weights: torchvision`` fixes ``stride_on``, ``stem_pool``, ``norm_eps`` and ``preprocess``, see
    :mod:`dcn_det.config.layouts`; keys that are left out then have its values.
    """

    weights: Text = "torchvision"
    """``none``, ``torchvision`` (ImageNet weights by name, downloaded once), or a local file."""
    width: Positive = 64
    """Channels of the 3x3 convolutions of res2 (of the wider branch); the later stages follow in proportion."""
    stem_width: Positive = 64
    """Channels of the first convolution."""
    stride_on: Literal["first_1x1", "3x3"] = "first_1x1"
    """Convolution of a bottleneck or branch with the stride: the first 1x1 (Caffe) or the 3x3 (torchvision)."""
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
    deform: DeformConfig = DeformConfig()

    @model_validator(mode="before")
    @classmethod
    def _default_layout(cls, data: Any) -> Any:
        """Fills in what the weights decide and nothing else does."""
        if not isinstance(data, dict):
            return data
        filled, preprocess = dict(data), data.get("preprocess", {})
        for key, value in layout_of(data.get("weights", cls.model_fields["weights"].default)).items():
            block, _, inner = key.rpartition(".")
            if not block:
                filled.setdefault(key, value)
            elif isinstance(preprocess, dict):
                preprocess = {inner: value, **preprocess}
        return {**filled, "preprocess": preprocess}

    @model_validator(mode="after")
    def _check_layout(self) -> ResidualBackboneConfig:
        given = {"stride_on": self.stride_on, "stem_pool": self.stem_pool, "norm_eps": self.norm_eps}
        given |= {f"preprocess.{key}": value for key, value in self.preprocess}
        needed = contradictions(self.weights, self.kind, given)
        if needed:
            raise wrong({tuple(key.split(".")): _unfit(given[key], value) for key, value in needed.items()})
        return self

    @model_validator(mode="after")
    def _check(self) -> ResidualBackboneConfig:
        if self.res5_stride == 2 and "res5_dilation" not in self.model_fields_set:
            raise ValueError(
                f"res5_stride 2 goes with a stated res5_dilation (1 in an ordinary ResNet); its default "
                f"{self.res5_dilation} makes up for a stride of 1"
            )
        return self


def _unfit(given: object, needed: object) -> str:
    given, needed = (list(each) if isinstance(each, tuple) else each for each in (given, needed))
    return f"{given} does not fit weights: torchvision; allowed: {needed}"


class ResNetConfig(ResidualBackboneConfig):
    kind: Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"] = "resnet101"


class AlignedInceptionResNetConfig(ResidualBackboneConfig):
    kind: Literal["aligned_inception_resnet"] = "aligned_inception_resnet"


class AnchorsConfig(Section):
    base_size: Literal["stride"] | Positive = "stride"
    """Pixels; side of the anchor at scale 1 and ratio 1. ``stride``: that of the feature map, level by level."""
    scales: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (4, 8, 16, 32)
    ratios: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (0.5, 1, 2)
    """Height over width."""


class AnchorHeadConfig(Section):
    """What the RPN and the class-aware RPN share."""

    anchors: AnchorsConfig = AnchorsConfig()
    positive_iou: Fraction = 0.7
    negative_iou: Fraction = 0.3
    batch_per_image: Positive = 256
    positive_fraction: Fraction = 0.5
    cross_border: bool = False
    """Whether anchors that leave the image are trained, too."""
    pre_nms: Positive = 6000
    """Boxes that take part in non-maximum suppression, best first."""
    sigma: PositiveFloat = 3
    """Smooth-L1 is quadratic below 1 / sigma^2."""
    loss_weight: NonNegativeFloat = 1.0

    @model_validator(mode="after")
    def _check_iou(self) -> AnchorHeadConfig:
        if self.negative_iou > self.positive_iou:
            raise ValueError(
                f"negative_iou {self.negative_iou:g} is above positive_iou {self.positive_iou:g}; lower it"
            )
        return self


class RPNConfig(AnchorHeadConfig):
    channels: Positive = 512
    post_nms: Positive = 300
    nms_iou: Fraction = 0.7
    min_size: NonNegativeFloat = 0
    """Proposals with a side shorter than this (original pixels) are dropped."""

    @model_validator(mode="after")
    def _check(self) -> RPNConfig:
        if self.post_nms > self.pre_nms:
            raise ValueError(f"post_nms {self.post_nms} is above pre_nms {self.pre_nms}; lower it")
        return self


class ClassAwareRPNHeadConfig(AnchorHeadConfig):
    cross_border: bool = True
    channels: Positive = 1024
    """Width of the 1x1 convolution between res5 and the outputs."""
    conv_channels: NonNegative = 0
    """Width of a 3x3 convolution after it, as the RPN has; 0 leaves it out, as the paper's counts suggest."""
    hidden_init: Literal["normal", "he"] = "normal"
    """How the layers before the outputs start: N(0, 0.01), or He's rule for narrow ones trained from scratch."""


class RoIHeadConfig(Section):
    """What the second stages share."""

    pooled_size: Positive = 7
    samples_per_bin: Positive = 4
    """Samples along each axis of a bin (``align``, ``bilinear`` and ``deformable``)."""
    offset_std: NonNegativeFloat = 0.1
    """Factor on the predicted, RoI-relative offsets (gamma in the paper)."""
    hidden_init: Literal["normal", "he"] = "normal"
    """How the layers before the outputs start: N(0, 0.01), or He's rule for narrow heads trained from scratch."""
    ohem: bool = False
    """Online hard example mining: of all RoIs train on the ``batch_per_image`` of largest loss."""
    batch_per_image: Positive = 128
    positive_fraction: Fraction | None = None
    """At most this share of the batch is foreground, 0.25 when not given; not with ``ohem``."""
    positive_iou: Fraction = 0.5
    negative_iou: tuple[Fraction, Fraction] = (0.1, 0.5)
    """Background RoIs have their best IoU in [low, high)."""
    box_stds: tuple[PositiveFloat, PositiveFloat, PositiveFloat, PositiveFloat] = (0.1, 0.1, 0.2, 0.2)
    """Box targets (dx, dy, dw, dh) are divided by these."""
    sigma: PositiveFloat = 1
    """Smooth-L1 is quadratic below 1 / sigma^2."""
    loss_weight: NonNegativeFloat = 1.0

    @model_validator(mode="after")
    def _check(self) -> RoIHeadConfig:
        low, high = self.negative_iou
        if low >= high:
            raise ValueError(f"negative_iou [{low:g}, {high:g}) is empty; its first number must be the smaller")
        if high > self.positive_iou:
            raise ValueError(f"negative_iou ends at {high:g}, above positive_iou {self.positive_iou:g}; lower its end")
        if self.ohem and self.positive_fraction is not None:
            raise ValueError("positive_fraction has no use with ohem; set it to null, or ohem to false")
        return self


class FasterRCNNHeadConfig(RoIHeadConfig):
    channels: Positive = 256
    """Width of the 1x1 convolution between res5 and pooling, or of the feature pyramid."""
    pooling: Literal["max", "align", "bilinear", "deformable"] = "max"
    """Max RoI pooling (the plain baseline), RoIAlign, the deformable operator with its offsets off, or on."""
    offset_lr_mult: NonNegativeFloat = 0.01
    hidden: Positive = 1024
    """Width of the two fully connected layers."""
    class_agnostic: bool = False
    """One set of box deltas for all classes instead of one per class."""


class RFCNHeadConfig(RoIHeadConfig):
    channels: Positive = 1024
    """Width of the 1x1 convolution between res5 and the position-sensitive maps."""
    pooling: Literal["average", "bilinear", "deformable"] = "average"
    """Position-sensitive pooling over whole cells, the deformable operator with its offsets off, or on."""
    offset_lr_mult: NonNegativeFloat = 1.0
    reduce_lr_mult: NonNegativeFloat = 3.0
    """Learning-rate multiplier of the 1x1 convolution after res5."""
    class_agnostic: bool = True
    """One set of box deltas for all classes instead of one per class."""
    ohem: bool = True
    negative_iou: tuple[Fraction, Fraction] = (0, 0.5)


class DetectorConfig(Section):
    """What every detector has; base of the sections that ``register_detector`` takes."""

    lasting = ("rpn",)

    kind: str
    backbone: Annotated[BackboneConfig, OneOf(BACKBONES)] = ResNetConfig()

    @property
    def pooling(self) -> str:
        """How RoIs are pooled; ``none`` for a detector without RoIs."""
        return "none"


class FasterRCNNConfig(DetectorConfig):
    kind: Literal["faster_rcnn"] = "faster_rcnn"
    fpn: bool = False
    """Feature pyramid: proposals and RoIs come from levels at strides 4 to 64 and 4 to 32."""
    rpn: RPNConfig = RPNConfig()
    head: FasterRCNNHeadConfig = FasterRCNNHeadConfig()

    @model_validator(mode="after")
    def _check(self) -> FasterRCNNConfig:
        if self.fpn and getattr(self.backbone, "res5_stride", 2) != 2:
            raise ValueError("fpn goes with backbone.res5_stride 2 (and res5_dilation 1)")
        if self.fpn and self.rpn.anchors.base_size != "stride":
            raise ValueError("fpn goes with rpn.anchors.base_size 'stride', since every level has another")
        return self

    @property
    def pooling(self) -> str:
        """How RoIs are pooled."""
        return self.head.pooling


class RFCNConfig(DetectorConfig):
    kind: Literal["rfcn"] = "rfcn"
    rpn: RPNConfig = RPNConfig()
    head: RFCNHeadConfig = RFCNHeadConfig()

    @property
    def pooling(self) -> str:
        """How RoIs are pooled."""
        return self.head.pooling


class ClassAwareRPNConfig(DetectorConfig):
    kind: Literal["class_aware_rpn"] = "class_aware_rpn"
    rpn: ClassAwareRPNHeadConfig = ClassAwareRPNHeadConfig()
