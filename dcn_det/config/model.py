"""Settings of models: backbones, proposals, heads and detectors."""

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
    """Input that the weights of the backbone expect."""

    channel_order: Literal["rgb", "bgr"] = "rgb"
    """Order of the channels at the input of the backbone."""
    mean: Triple = (123.15, 115.90, 103.06)
    """Subtracted from pixel values from 0 to 255; red, green, blue for either ``channel_order``."""
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (1.0, 1.0, 1.0)
    """Divisor after the subtraction; red, green, blue for either ``channel_order``."""


class DeformConfig(Section):
    """Deformable convolution in the backbone."""

    blocks: tuple[Text, ...] = ()
    """Residual blocks with deformable 3x3 convolutions, such as ``res5a`` or ``res4b22``; single convolutions of
    ``aligned_inception_resnet`` as well, such as ``res5a_branch2c``."""
    kind: Literal["v1", "v2"] = "v1"
    """Learned quantities: offsets (``v1``), or offsets and a modulation mask (``v2``)."""
    offset_groups: Positive = 4
    """Groups of input channels, each with its own offsets; the authors have 4 with ``v1`` and 1 with ``v2``."""
    offset_dilation: Literal["host"] | Positive = "host"
    """Dilation of the 3x3 convolution that predicts the offsets; ``host``: the same as the deformable convolution."""
    mask_scale: PositiveFloat = 2.0
    """Factor on the sigmoid of the mask (``v2``): 2, which starts as the plain convolution, in the authors' code; 1 in
    their paper, mmcv and detectron2."""
    border: Literal["zeros", "dcn_v1"] = "zeros"
    """Sampling outside the feature map: zero padding, or the rule of the authors' released operator."""
    lr_mult: NonNegativeFloat | None = None
    """Learning-rate multiplier of the convolutions that predict offsets and mask; null: 1 with ``v1``, 0.1 with
    ``v2``."""


class BackboneConfig(Section):
    """Keys of every backbone; base class of the sections for ``register_backbone``."""

    kind: str
    weights: Text = "none"
    """Pretrained weights: ``none``, or a local file."""
    preprocess: PreprocessConfig = PreprocessConfig()


class ResidualBackboneConfig(BackboneConfig):
    """Keys of residual networks.

    Defaults of ``stride_on``, ``stem_pool``, ``norm_eps`` and ``preprocess`` depend on ``weights`` and ``kind``;
    ``weights: torchvision`` allows no other values. See :mod:`dcn_det.config.layouts`.
    """

    weights: Text = "torchvision"
    """Pretrained weights: ``none``, ``torchvision`` (trained on ImageNet, downloaded once), or a local file."""
    width: Positive = 64
    """Channels of the 3x3 convolutions in res2 (in the wider branch); doubles with every later stage."""
    stem_width: Positive = 64
    """Channels of the first convolution."""
    stride_on: Literal["first_1x1", "3x3"] = "first_1x1"
    """Convolution with the stride of a stage: the first 1x1 (Caffe), or the 3x3 (torchvision)."""
    stem_pool: Literal["ceil", "pad"] = "ceil"
    """3x3 max pooling with stride 2: without padding, size rounded up (Caffe), or padded by 1, size rounded down
    (torchvision)."""
    norm: Literal["frozen_bn", "bn", "sync_bn", "gn"] = "frozen_bn"
    """Batch normalization with constant statistics, scale and shift; trained batch normalization, per process or over
    all processes; or group normalization."""
    norm_eps: PositiveFloat = 1e-5
    """Added to the variance in normalization layers."""
    frozen_stages: Annotated[int, Field(ge=0, le=5)] = 2
    """Number of leading stages without training: 1 is the stem, 2 adds res2, 5 is the whole network."""
    res5_stride: Literal[1, 2] = 1
    """Stride of res5; its output has stride 16 (the paper) or 32."""
    res5_dilation: Positive | tuple[Positive, Positive, Positive] = 2
    """Dilation of the 3x3 convolutions in res5, one number or one per block."""
    deform: DeformConfig = DeformConfig()

    @model_validator(mode="before")
    @classmethod
    def _default_layout(cls, data: Any) -> Any:
        """Fills in the layout of the weights where a key is missing."""
        if not isinstance(data, dict):
            return data
        filled, preprocess = dict(data), data.get("preprocess", {})
        weights, kind = (data.get(key, cls.model_fields[key].default) for key in ("weights", "kind"))
        for key, value in layout_of(weights, kind).items():
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
                f"res5_stride 2 requires an explicit res5_dilation (1 in the original ResNet); "
                f"the default {self.res5_dilation} is for res5_stride 1"
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
    """Side of the anchor with scale 1 and ratio 1, in pixels; ``stride``: the stride of each feature map."""
    scales: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (4, 8, 16, 32)
    """Multiples of ``base_size``."""
    ratios: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (0.5, 1, 2)
    """Height divided by width."""


class AnchorHeadConfig(Section):
    """Keys of the RPN and the class-aware RPN."""

    anchors: AnchorsConfig = AnchorsConfig()
    positive_iou: Fraction = 0.7
    """Minimum IoU of a positive anchor with an object (inclusive); the best anchor per object is positive as well."""
    negative_iou: Fraction = 0.3
    """Maximum IoU of a negative anchor with any object (exclusive)."""
    batch_per_image: Positive = 256
    """Anchors per image in the loss."""
    positive_fraction: Fraction = 0.5
    """Maximum share of positive anchors among them."""
    cross_border: bool = False
    """Train anchors that cross the border of the image as well."""
    pre_nms: Positive = 6000
    """Boxes per image before non-maximum suppression, by score."""
    sigma: PositiveFloat = 3
    """Smooth L1 loss is quadratic below 1 / sigma^2."""
    loss_weight: NonNegativeFloat = 1.0
    """Factor of both losses."""

    @model_validator(mode="after")
    def _check_iou(self) -> AnchorHeadConfig:
        if self.negative_iou > self.positive_iou:
            raise ValueError(
                f"negative_iou {self.negative_iou:g} is above positive_iou {self.positive_iou:g}; lower it"
            )
        return self


class RPNConfig(AnchorHeadConfig):
    channels: Positive = 512
    """Channels of the 3x3 convolution."""
    post_nms: Positive = 300
    """Proposals per image after non-maximum suppression, by score."""
    nms_iou: Fraction = 0.7
    """Maximum IoU of two proposals (inclusive)."""
    min_size: NonNegativeFloat = 0
    """Minimum side of a proposal, in pixels of the original image."""

    @model_validator(mode="after")
    def _check(self) -> RPNConfig:
        if self.post_nms > self.pre_nms:
            raise ValueError(f"post_nms {self.post_nms} is above pre_nms {self.pre_nms}; lower it")
        return self


class ClassAwareRPNHeadConfig(AnchorHeadConfig):
    cross_border: bool = True
    """Train anchors that cross the border of the image as well."""
    channels: Positive = 1024
    """Channels of the 1x1 convolution after res5."""
    conv_channels: NonNegative = 0
    """Channels of a 3x3 convolution after it, as in the RPN; 0: none, which matches the paper's parameter counts."""
    hidden_init: Literal["normal", "he"] = "normal"
    """Initialization of the layers before the outputs: N(0, 0.01), or He's for narrow layers trained from scratch."""


OFFSET_POOLING = ("deformable", "modulated")
"""Kinds of RoI pooling that learn offsets."""


class RoIHeadConfig(Section):
    """Keys of all second stages."""

    pooled_size: Positive = 7
    """Bins along each axis of a RoI."""
    samples_per_bin: Positive = 4
    """Sampling points along each axis of a bin, for all pooling but ``max`` and ``average``."""
    offset_std: NonNegativeFloat = 0.1
    """Factor of the predicted offsets, which are relative to the RoI's size (gamma in the paper)."""
    hidden_init: Literal["normal", "he"] = "normal"
    """Initialization of the layers before the outputs: N(0, 0.01), or He's for narrow heads trained from scratch."""
    ohem: bool = False
    """Online hard example mining: train on the ``batch_per_image`` RoIs with the largest loss."""
    batch_per_image: Positive = 128
    """RoIs per image in the loss."""
    positive_fraction: Fraction | None = None
    """Maximum share of foreground RoIs among them; null: 0.25. Not with ``ohem``."""
    positive_iou: Fraction = 0.5
    """Minimum IoU of a foreground RoI with an object (inclusive)."""
    negative_iou: tuple[Fraction, Fraction] = (0.1, 0.5)
    """Largest IoU of a background RoI with any object, in [low, high)."""
    box_stds: tuple[PositiveFloat, PositiveFloat, PositiveFloat, PositiveFloat] = (0.1, 0.1, 0.2, 0.2)
    """Divisors of the box targets dx, dy, dw, dh."""
    sigma: PositiveFloat = 1
    """Smooth L1 loss is quadratic below 1 / sigma^2."""
    loss_weight: NonNegativeFloat = 1.0
    """Factor of both losses."""

    @model_validator(mode="after")
    def _check(self) -> RoIHeadConfig:
        low, high = self.negative_iou
        if low >= high:
            raise ValueError(f"negative_iou [{low:g}, {high:g}) is empty; the first number must be the smaller one")
        if high > self.positive_iou:
            raise ValueError(f"negative_iou ends at {high:g}, above positive_iou {self.positive_iou:g}; lower its end")
        if self.ohem and self.positive_fraction is not None:
            raise ValueError("positive_fraction has no effect with ohem; set it to null, or ohem to false")
        return self


class FasterRCNNHeadConfig(RoIHeadConfig):
    channels: Positive = 256
    """Channels of the 1x1 convolution between res5 and pooling, or of the feature pyramid."""
    pooling: Literal["max", "align", "bilinear", "deformable", "modulated"] = "max"
    """Max RoI pooling, RoIAlign, deformable RoI pooling without offsets (``bilinear``), with them, or with offsets and
    a factor for each bin (``modulated``, DCNv2)."""
    offset_lr_mult: NonNegativeFloat | None = None
    """Learning-rate multiplier of the layers that predict offsets; null: 0.01, or 1 when ``modulated``."""
    hidden: Positive = 1024
    """Units of each of the two fully connected layers."""
    class_agnostic: bool = False
    """Predict one box for all classes instead of one per class."""


class RFCNHeadConfig(RoIHeadConfig):
    channels: Positive = 1024
    """Channels of the 1x1 convolution between res5 and the position-sensitive score maps."""
    pooling: Literal["average", "bilinear", "deformable"] = "average"
    """Position-sensitive RoI pooling, its deformable form without offsets (``bilinear``), or with offsets."""
    offset_lr_mult: NonNegativeFloat = 1.0
    """Learning-rate multiplier of the layers that predict offsets."""
    reduce_lr_mult: NonNegativeFloat = 3.0
    """Learning-rate multiplier of the 1x1 convolution after res5."""
    class_agnostic: bool = True
    """Predict one box for all classes instead of one per class."""
    ohem: bool = True
    """Online hard example mining: train on the ``batch_per_image`` RoIs with the largest loss."""
    negative_iou: tuple[Fraction, Fraction] = (0, 0.5)
    """Largest IoU of a background RoI with any object, in [low, high)."""


class ModelConfig(Section):
    """Keys of the model of every task."""

    kind: str
    weights: Text = "none"
    """Checkpoint of the same architecture to start from, also with other classes: ``none``, or a local file. Replaces
    ``backbone.weights``; settings that belong to the weights, such as anchors, come from the file."""
    backbone: Annotated[BackboneConfig, OneOf(BACKBONES)] = ResNetConfig()

    @property
    def pooling(self) -> str:
        """Kind of RoI pooling; ``none`` for a model without RoIs."""
        return "none"

    @property
    def deforms_rois(self) -> bool:
        """Whether RoI pooling learns offsets."""
        return self.pooling in OFFSET_POOLING


class DetectorConfig(ModelConfig):
    """Keys of every detector; base class of the sections for ``register_detector``."""

    lasting = ("rpn",)

    box_corners: Literal["half_open", "inclusive"] = "half_open"
    """Corners that are divided by the scale when boxes are mapped back to the original image: half-open, or inclusive
    as in the authors' released code, where a box is (x2 - x1) / scale + 1 wide."""


class FasterRCNNConfig(DetectorConfig):
    kind: Literal["faster_rcnn"] = "faster_rcnn"
    fpn: bool = False
    """Feature pyramid: anchors on levels with strides 4 to 64, RoIs on levels with strides 4 to 32."""
    rpn: RPNConfig = RPNConfig()
    head: FasterRCNNHeadConfig = FasterRCNNHeadConfig()

    @model_validator(mode="after")
    def _check(self) -> FasterRCNNConfig:
        if self.fpn and getattr(self.backbone, "res5_stride", 2) != 2:
            raise ValueError("fpn requires backbone.res5_stride 2 (and res5_dilation 1)")
        if self.fpn and self.rpn.anchors.base_size != "stride":
            raise ValueError("fpn requires rpn.anchors.base_size 'stride', since the size differs between levels")
        return self

    @property
    def pooling(self) -> str:
        """Kind of RoI pooling."""
        return self.head.pooling


class RFCNConfig(DetectorConfig):
    kind: Literal["rfcn"] = "rfcn"
    rpn: RPNConfig = RPNConfig()
    head: RFCNHeadConfig = RFCNHeadConfig()

    @property
    def pooling(self) -> str:
        """Kind of RoI pooling."""
        return self.head.pooling


class ClassAwareRPNConfig(DetectorConfig):
    kind: Literal["class_aware_rpn"] = "class_aware_rpn"
    rpn: ClassAwareRPNHeadConfig = ClassAwareRPNHeadConfig()


class SegmenterConfig(ModelConfig):
    """Keys of every model of semantic segmentation; base class of the sections for ``register_segmenter``."""


class DeepLabConfig(SegmenterConfig):
    kind: Literal["deeplab"] = "deeplab"
    channels: Positive = 1024
    """Channels of the 1x1 convolution between res5 and the scores."""
    hidden_init: Literal["normal", "he"] = "normal"
    """Initialization of that convolution: N(0, 0.01), or He's for narrow networks trained from scratch."""
    bias_lr_mult: NonNegativeFloat = 2.0
    """Learning-rate multiplier of the biases of the 1x1 convolutions and of those that predict offsets."""
