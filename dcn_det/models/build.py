"""From settings to a model: the only file here that reads them.

A new backbone or detector is one more module and one more line in :data:`BACKBONES` or :data:`DETECTORS`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from dcn_det.config.model import (
    AlignedInceptionResNetConfig,
    AnchorsConfig,
    ClassAwareRPNConfig,
    ClassAwareRPNHeadConfig,
    DeformConfig,
    DetectorConfig,
    FasterRCNNConfig,
    FasterRCNNHeadConfig,
    PreprocessConfig,
    ResidualBackboneConfig,
    ResNetConfig,
    RFCNConfig,
    RFCNHeadConfig,
    RPNConfig,
)
from dcn_det.config.testing import TestConfig
from dcn_det.errors import UserError, did_you_mean
from dcn_det.models.anchor_head import AnchorSampling
from dcn_det.models.anchors import cell_anchors
from dcn_det.models.backbones import aligned_inception_resnet as air
from dcn_det.models.backbones.convolution import DeformableBlocks
from dcn_det.models.backbones.fpn import FeaturePyramid
from dcn_det.models.backbones.residual import ResidualBackbone
from dcn_det.models.backbones.resnet import BASIC, DEPTHS, ResNet, stage_block_names
from dcn_det.models.class_aware_rpn import ClassAwareRPN
from dcn_det.models.detector import Backbone, Head, TwoStageDetector
from dcn_det.models.heads.faster_rcnn import FasterRCNNHead
from dcn_det.models.heads.rfcn import RFCNHead
from dcn_det.models.one_stage import OneStageDetector
from dcn_det.models.preprocess import Preprocess
from dcn_det.models.rpn import RPN, ProposalSelection
from dcn_det.models.targets import RoISampler
from dcn_det.weights import torchvision as torchvision_weights
from dcn_det.weights.files import load_into, read_backbone
from dcn_det.weights.settings import as_overrides, get

Detector = TwoStageDetector | OneStageDetector


def build_detector(
    model: DetectorConfig, num_classes: int, test: TestConfig, *, load_backbone_weights: bool = True
) -> Detector:
    """Builds the detector that the settings describe, on the CPU.

    Args:
        model: its settings.
        num_classes: without background.
        test: settings of testing, for what the detector returns in evaluation mode.
        load_backbone_weights: ``False`` when a checkpoint of the whole model follows.

    Raises:
        UserError: the settings contradict each other, or the weights cannot be had.
    """
    backbone = BACKBONES[model.backbone.kind](model.backbone, load_backbone_weights)
    return DETECTORS[model.kind](model, backbone, num_classes, test)


def _faster_rcnn(model: FasterRCNNConfig, backbone: Backbone, num_classes: int, test: TestConfig) -> TwoStageDetector:
    settings = model.head
    rpn_features, head_features = ["res4"], ["res5"]
    if model.fpn:
        backbone = FeaturePyramid(backbone, settings.channels, init=settings.hidden_init)
        rpn_features, head_features = list(backbone.strides), list(backbone.strides)[:-1]
    head = FasterRCNNHead(
        backbone.channels[head_features[0]],
        num_classes,
        [backbone.strides[name] for name in head_features],
        channels=None if model.fpn else settings.channels,
        pooling=settings.pooling,
        hidden=settings.hidden,
        **_roi_head(settings),
    )
    return _two_stage(model, backbone, head, test, rpn_features, head_features)


def _rfcn(model: RFCNConfig, backbone: Backbone, num_classes: int, test: TestConfig) -> TwoStageDetector:
    settings = model.head
    head = RFCNHead(
        backbone.channels["res5"],
        num_classes,
        backbone.strides["res5"],
        channels=settings.channels,
        pooling=settings.pooling,
        reduce_lr_mult=settings.reduce_lr_mult,
        **_roi_head(settings),
    )
    return _two_stage(model, backbone, head, test, ["res4"], ["res5"])


def _class_aware_rpn(
    model: ClassAwareRPNConfig, backbone: Backbone, num_classes: int, test: TestConfig
) -> OneStageDetector:
    settings = model.rpn
    (anchors,), (stride,) = _anchors(settings.anchors, [backbone.strides["res5"]])
    rpn = ClassAwareRPN(
        backbone.channels["res5"],
        num_classes,
        anchors,
        stride,
        channels=settings.channels,
        conv_channels=settings.conv_channels,
        sampling=_anchor_sampling(settings),
        pre_nms=settings.pre_nms,
        sigma=settings.sigma,
        loss_weight=settings.loss_weight,
        hidden_init=settings.hidden_init,
    )
    return OneStageDetector(
        _preprocess(model.backbone.preprocess),
        backbone,
        rpn,
        score_threshold=test.score_threshold,
        nms_iou=test.nms_iou,
        max_detections=test.max_detections,
    )


def _roi_head(settings: FasterRCNNHeadConfig | RFCNHeadConfig) -> dict[str, Any]:
    """The arguments that the second stages share."""
    fraction = settings.positive_fraction
    return {
        "pooled_size": settings.pooled_size,
        "samples_per_bin": settings.samples_per_bin,
        "offset_std": settings.offset_std,
        "offset_lr_mult": settings.offset_lr_mult,
        "class_agnostic": settings.class_agnostic,
        "sampler": RoISampler(
            batch=settings.batch_per_image,
            positive_fraction=0.25 if fraction is None else fraction,
            positive_iou=settings.positive_iou,
            negative_iou=settings.negative_iou,
            hard=settings.ohem,
        ),
        "box_stds": settings.box_stds,
        "sigma": settings.sigma,
        "loss_weight": settings.loss_weight,
        "hidden_init": settings.hidden_init,
    }


def _two_stage(
    model: FasterRCNNConfig | RFCNConfig,
    backbone: Backbone,
    head: Head,
    test: TestConfig,
    rpn_features: Sequence[str],
    head_features: Sequence[str],
) -> TwoStageDetector:
    strides = [backbone.strides[name] for name in rpn_features]
    return TwoStageDetector(
        _preprocess(model.backbone.preprocess),
        backbone,
        _rpn(model.rpn, backbone.channels[rpn_features[0]], strides),
        head,
        rpn_features=rpn_features,
        head_features=head_features,
        score_threshold=test.score_threshold,
        nms_iou=test.nms_iou,
        max_detections=test.max_detections,
    )


def _preprocess(settings: PreprocessConfig) -> Preprocess:
    return Preprocess(settings.channel_order, settings.mean, settings.std)


def _rpn(settings: RPNConfig, in_channels: int, strides: Sequence[int]) -> RPN:
    anchors, strides = _anchors(settings.anchors, strides)
    return RPN(
        in_channels,
        anchors,
        strides,
        channels=settings.channels,
        sampling=_anchor_sampling(settings),
        selection=ProposalSelection(
            pre_nms=settings.pre_nms,
            nms_iou=settings.nms_iou,
            post_nms=settings.post_nms,
            min_size=settings.min_size,
        ),
        sigma=settings.sigma,
        loss_weight=settings.loss_weight,
    )


def _anchors(settings: AnchorsConfig, strides: Sequence[int]) -> tuple[list[Tensor], list[int]]:
    """The anchors of a cell of each level, and its stride."""
    sides = [stride if settings.base_size == "stride" else settings.base_size for stride in strides]
    return [cell_anchors(side, settings.ratios, settings.scales) for side in sides], list(strides)


def _anchor_sampling(settings: RPNConfig | ClassAwareRPNHeadConfig) -> AnchorSampling:
    return AnchorSampling(
        positive_iou=settings.positive_iou,
        negative_iou=settings.negative_iou,
        batch=settings.batch_per_image,
        positive_fraction=settings.positive_fraction,
        cross_border=settings.cross_border,
    )


def _common_arguments(settings: ResidualBackboneConfig) -> dict[str, Any]:
    """What all backbones take; their arguments have the names of the settings."""
    names = ["width", "stem_width", "stride_on", "stem_pool", "norm", "norm_eps"]
    names += ["frozen_stages", "res5_stride", "res5_dilation"]
    return {name: getattr(settings, name) for name in names} | {"deformable": _deformable(settings.deform)}


def _resnet(settings: ResNetConfig, load_weights: bool) -> ResNet:
    _check_resnet(settings)
    backbone = ResNet(settings.kind, **_common_arguments(settings))
    if load_weights:
        _load_backbone(backbone, settings)
    return backbone


def _aligned_inception_resnet(settings: AlignedInceptionResNetConfig, load_weights: bool) -> air.AlignedInceptionResNet:
    if settings.width % 2:
        raise UserError(f"model.backbone.width: {settings.width} is odd; {air.KIND} needs an even number")
    parts = air.deformable_names()
    _check_deform(
        settings,
        {name: min(air.channels_of(each, settings.width) for each in convs) for name, convs in parts.items()},
    )
    backbone = air.AlignedInceptionResNet(**_common_arguments(settings))
    if load_weights:
        _load_backbone(backbone, settings)
    return backbone


def _deformable(deform: DeformConfig) -> DeformableBlocks:
    return DeformableBlocks(
        names=deform.blocks,
        modulated=deform.kind == "v2",
        offset_groups=deform.offset_groups,
        offset_dilation=None if deform.offset_dilation == "host" else deform.offset_dilation,
        border=deform.border,
        lr_mult=deform.lr_mult,
    )


def _check_resnet(settings: ResNetConfig) -> None:
    stages = stage_block_names(settings.kind)
    _check_deform(
        settings,
        {name: settings.width * 2**index for index, names in enumerate(stages.values()) for name in names},
    )
    dilation, depth = settings.res5_dilation, len(stages["res5"])
    if isinstance(dilation, tuple) and len(dilation) != depth:
        raise UserError(f"model.backbone.res5_dilation: {len(dilation)} numbers for {depth} blocks of {settings.kind}")


def _check_deform(settings: ResidualBackboneConfig, channels: dict[str, int]) -> None:
    """Refuses names that are not in ``channels``, and offset groups that do not divide those channels."""
    groups = settings.deform.offset_groups
    for name in settings.deform.blocks:
        if name not in channels:
            raise UserError(
                f"model.backbone.deform.blocks: {settings.kind} has no block '{name}'{did_you_mean(name, channels)}"
            )
        if channels[name] % groups:
            raise UserError(
                f"model.backbone.deform.offset_groups: {groups} does not divide {name}'s {channels[name]} channels"
            )


def _load_backbone(backbone: ResidualBackbone, settings: ResidualBackboneConfig) -> None:
    if settings.weights == "none":
        if settings.norm == "frozen_bn" or settings.frozen_stages:
            raise UserError(
                "model.backbone.weights: 'none' would leave frozen layers at random; give weights, or set "
                "model.backbone.norm to gn or bn and model.backbone.frozen_stages to 0"
            )
        return
    if settings.weights == "torchvision":
        if settings.kind not in DEPTHS:
            raise UserError(
                f"model.backbone.weights: torchvision has none of {settings.kind}; give a local file, or train from "
                "scratch: weights none, norm gn or bn, frozen_stages 0"
            )
        if (settings.width, settings.stem_width) != (64, 64):
            raise UserError(
                "model.backbone.weights: torchvision's have width 64 and stem_width 64, "
                f"not {settings.width} and {settings.stem_width}"
            )
        _warn_of_mismatch(settings)
        source, state = f"torchvision ({settings.kind})", torchvision_weights.imagenet_weights(settings.kind)
    else:
        source = settings.weights
        state, recorded = read_backbone(source)
        _check_recorded(settings, recorded)
    # The classifier has no place here, and weights of a plain network know no offsets.
    load_into(backbone, state, source=source, ignored=("fc.",), optional=(".offset.weight", ".offset.bias"))


def _check_recorded(settings: ResidualBackboneConfig, recorded: dict[str, Any]) -> None:
    """Refuses settings other than those that a file says its weights need."""
    plain = {"model": {"backbone": settings.model_dump(mode="json")}}
    wrong = {key: value for key, value in recorded.items() if get(plain, key) != value}
    if wrong:
        raise UserError(
            f"model.backbone.weights: '{settings.weights}' was made for other settings; add {as_overrides(wrong)}"
        )


def _warn_of_mismatch(settings: ResidualBackboneConfig) -> None:
    given = {
        "stride_on": settings.stride_on,
        "stem_pool": settings.stem_pool,
        "norm_eps": settings.norm_eps,
        "preprocess.channel_order": settings.preprocess.channel_order,
        "preprocess.mean": settings.preprocess.mean,
        "preprocess.std": settings.preprocess.std,
    }
    trained = {
        "stride_on": "3x3",
        "stem_pool": "pad",
        "norm_eps": 1e-5,
        "preprocess.channel_order": "rgb",
        "preprocess.mean": torchvision_weights.MEAN,
        "preprocess.std": torchvision_weights.STD,
    }
    if settings.kind in BASIC:
        del given["stride_on"]  # Basic blocks have no choice.
    differing = [f"{key} {given[key]} (trained with {trained[key]})" for key in given if given[key] != trained[key]]
    if differing:
        warnings.warn(f"model.backbone does not match torchvision's weights: {', '.join(differing)}", stacklevel=2)


BACKBONES: dict[str, Callable[[Any, bool], Backbone]] = {
    **dict.fromkeys(DEPTHS, _resnet),
    air.KIND: _aligned_inception_resnet,
}
DETECTORS: dict[str, Callable[[Any, Backbone, int, TestConfig], Detector]] = {
    "faster_rcnn": _faster_rcnn,
    "rfcn": _rfcn,
    "class_aware_rpn": _class_aware_rpn,
}
