"""Builds models from settings: the only file of ``models`` that reads them.

Settings are passed to constructors by name: a key of a section is an argument of one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from dcn_det.config import BACKBONES, DETECTORS, SEGMENTERS, Config, RunConfig
from dcn_det.config.classifier import ClassificationConfig, ClassifierConfig
from dcn_det.config.model import (
    AlignedInceptionResNetConfig,
    AnchorsConfig,
    BackboneConfig,
    ClassAwareRPNConfig,
    DeepLabConfig,
    FasterRCNNConfig,
    PreprocessConfig,
    ResidualBackboneConfig,
    ResNetConfig,
    RFCNConfig,
    RPNConfig,
    SegmenterConfig,
)
from dcn_det.config.options import Options
from dcn_det.config.segmentation import SegmentationConfig
from dcn_det.config.testing import TestConfig
from dcn_det.errors import UserError, did_you_mean
from dcn_det.models.anchor_head import AnchorSampling
from dcn_det.models.anchors import cell_anchors
from dcn_det.models.backbones import aligned_inception_resnet as air
from dcn_det.models.backbones.aligned_inception_resnet import AlignedInceptionResNet
from dcn_det.models.backbones.convolution import DeformableBlocks
from dcn_det.models.backbones.fpn import FeaturePyramid
from dcn_det.models.backbones.residual import ResidualBackbone
from dcn_det.models.backbones.resnet import ResNet
from dcn_det.models.class_aware_rpn import ClassAwareRPN
from dcn_det.models.classifier import Classifier
from dcn_det.models.deeplab import DeepLab, DeepLabHead
from dcn_det.models.detector import Backbone, Detector, Head, TwoStageDetector
from dcn_det.models.heads.faster_rcnn import FasterRCNNHead
from dcn_det.models.heads.rfcn import RFCNHead
from dcn_det.models.one_stage import OneStageDetector
from dcn_det.models.preprocess import Preprocess
from dcn_det.models.rpn import RPN, ProposalSelection
from dcn_det.models.targets import RoISampler


def build_model(config: RunConfig, num_classes: int) -> Any:
    """Builds the model of a config of any task, on the CPU and without pretrained weights.

    Args:
        config: the settings.
        num_classes: number of categories.

    Returns:
        A module with ``backbone`` and ``lr_multipliers()``; in training mode, it maps a batch to losses.

    Raises:
        UserError: the settings contradict each other.
    """
    if isinstance(config, Config):
        return build_detector(config, num_classes)
    if isinstance(config, ClassificationConfig):
        return build_classifier(config.model, num_classes)
    assert isinstance(config, SegmentationConfig)
    return build_segmenter(config.model, num_classes)


def build_detector(config: Config, num_classes: int) -> Detector[Any]:
    """Builds the detector of a config, on the CPU and without pretrained weights.

    :func:`dcn_det.weights.backbone.load_backbone_weights` loads those of the backbone.

    Args:
        config: settings; ``model`` and ``test.score_threshold`` are read.
        num_classes: without background.

    Raises:
        UserError: the settings contradict each other.
    """
    build: Callable[..., Detector[Any]] = DETECTORS.builder(config.model.kind)
    return build(config.model, build_backbone(config.model.backbone), num_classes, config.test)


def build_backbone(settings: BackboneConfig) -> Backbone:
    """Builds a backbone, on the CPU and without pretrained weights."""
    backbone: Backbone = BACKBONES.builder(settings.kind)(settings)
    return backbone


def build_classifier(settings: ClassifierConfig, num_classes: int) -> Classifier:
    """Builds a classifier, on the CPU and without pretrained weights."""
    backbone, options = build_backbone(settings.backbone), Options(settings, "kind", "weights")
    parts = options(Classifier, preprocess=_preprocess(settings.backbone.preprocess, backbone), backbone=backbone)
    options.done()
    return Classifier(num_classes=num_classes, **parts)


def build_segmenter(settings: SegmenterConfig, num_classes: int) -> DeepLab:
    """Builds a model of semantic segmentation, on the CPU and without pretrained weights.

    Args:
        settings: the section ``model``.
        num_classes: including background, if that is a class.
    """
    build: Callable[..., DeepLab] = SEGMENTERS.builder(settings.kind)
    return build(settings, build_backbone(settings.backbone), num_classes)


def build_deeplab(settings: DeepLabConfig, backbone: Backbone, num_classes: int) -> DeepLab:
    """Builds DeepLab."""
    options = Options(settings, "kind", "backbone", "weights")
    head = DeepLabHead(backbone.channels["res5"], num_classes, **options(DeepLabHead))
    preprocess = _preprocess(settings.backbone.preprocess, backbone)
    model = DeepLab(**options(DeepLab, preprocess=preprocess, backbone=backbone, head=head))
    options.done()
    return model


def build_faster_rcnn(
    settings: FasterRCNNConfig, backbone: Backbone, num_classes: int, test: TestConfig
) -> TwoStageDetector:
    """Builds Faster R-CNN, on one feature map or on a feature pyramid."""
    options = Options(settings.head)
    rpn_features, head_features = ["res4"], ["res5"]
    instead: dict[str, Any] = {"sampler": RoISampler(**options(RoISampler))}
    if settings.fpn:
        backbone = FeaturePyramid(backbone, **options(FeaturePyramid))
        rpn_features, head_features = list(backbone.strides), list(backbone.strides)[:-1]
        instead["channels"] = None
    head = FasterRCNNHead(
        backbone.channels[head_features[0]],
        num_classes,
        [backbone.strides[name] for name in head_features],
        **options(FasterRCNNHead, **instead),
    )
    options.done()
    return _two_stage(settings, backbone, head, test, rpn_features, head_features)


def build_rfcn(settings: RFCNConfig, backbone: Backbone, num_classes: int, test: TestConfig) -> TwoStageDetector:
    """Builds R-FCN."""
    options = Options(settings.head)
    sampler = RoISampler(**options(RoISampler))
    channels, stride = backbone.channels["res5"], backbone.strides["res5"]
    head = RFCNHead(channels, num_classes, stride, **options(RFCNHead, sampler=sampler))
    options.done()
    return _two_stage(settings, backbone, head, test, ["res4"], ["res5"])


def build_class_aware_rpn(
    settings: ClassAwareRPNConfig, backbone: Backbone, num_classes: int, test: TestConfig
) -> OneStageDetector:
    """Builds the class-aware RPN as a one-stage detector."""
    options = Options(settings.rpn)
    (anchors,), (stride,) = _anchors(settings.rpn.anchors, [backbone.strides["res5"]])
    sampling = AnchorSampling(**options(AnchorSampling))
    rpn = ClassAwareRPN(
        backbone.channels["res5"],
        num_classes,
        stride=stride,
        **options(ClassAwareRPN, anchors=anchors, sampling=sampling, size_multiple=_size_multiple(backbone)),
    )
    options.done()
    preprocess = _preprocess(settings.backbone.preprocess, backbone)
    return OneStageDetector(preprocess, backbone, rpn, score_threshold=test.score_threshold)


def _two_stage(
    settings: FasterRCNNConfig | RFCNConfig,
    backbone: Backbone,
    head: Head,
    test: TestConfig,
    rpn_features: Sequence[str],
    head_features: Sequence[str],
) -> TwoStageDetector:
    strides = [backbone.strides[name] for name in rpn_features]
    return TwoStageDetector(
        _preprocess(settings.backbone.preprocess, backbone),
        backbone,
        _rpn(settings.rpn, backbone.channels[rpn_features[0]], strides, _size_multiple(backbone)),
        head,
        rpn_features=rpn_features,
        head_features=head_features,
        score_threshold=test.score_threshold,
    )


def _size_multiple(backbone: Backbone) -> int:
    """Returns the multiple to which a backbone needs images padded, in pixels; 1 by default."""
    multiple: int = getattr(backbone, "size_multiple", 1)
    return multiple


def _preprocess(settings: PreprocessConfig, backbone: Backbone) -> Preprocess:
    options = Options(settings)
    preprocess = Preprocess(**options(Preprocess, size_multiple=_size_multiple(backbone)))
    options.done()
    return preprocess


def _rpn(settings: RPNConfig, in_channels: int, strides: Sequence[int], size_multiple: int) -> RPN:
    options = Options(settings)
    anchors, strides = _anchors(settings.anchors, strides)
    bundles = {
        "sampling": AnchorSampling(**options(AnchorSampling)),
        "selection": ProposalSelection(**options(ProposalSelection)),
    }
    rpn = RPN(in_channels, stride=strides, **options(RPN, anchors=anchors, size_multiple=size_multiple, **bundles))
    options.done()
    return rpn


def _anchors(settings: AnchorsConfig, strides: Sequence[int]) -> tuple[list[Tensor], list[int]]:
    """Returns the anchors of a cell of each level, and the strides."""
    sides = [stride if settings.base_size == "stride" else settings.base_size for stride in strides]
    return [cell_anchors(side, settings.ratios, settings.scales) for side in sides], list(strides)


def build_resnet(settings: ResNetConfig) -> ResNet:
    """Builds a ResNet."""
    dilation, depth = settings.res5_dilation, ResNet.depths(settings.kind)[-1]
    if isinstance(dilation, tuple) and len(dilation) != depth:
        raise UserError(f"model.backbone.res5_dilation: {len(dilation)} numbers for {depth} blocks of {settings.kind}")
    return _residual(settings, ResNet)


def build_aligned_inception_resnet(settings: AlignedInceptionResNetConfig) -> AlignedInceptionResNet:
    """Builds an Aligned-Inception-ResNet."""
    if settings.width % 2:
        raise UserError(f"model.backbone.width: {settings.width} is odd; {air.KIND} needs an even number")
    return _residual(settings, AlignedInceptionResNet)


def _residual(settings: ResidualBackboneConfig, network: type[Any]) -> Any:
    assert issubclass(network, ResidualBackbone)
    _check_deform(settings, network.deformable_channels(settings.kind, settings.width))
    deform, options = Options(settings.deform), Options(settings, "weights", "preprocess")
    blocks = DeformableBlocks(**deform(DeformableBlocks))
    backbone = network(**options(network, deform=blocks))
    deform.done()
    options.done()
    return backbone


def _check_deform(settings: ResidualBackboneConfig, channels: dict[str, int]) -> None:
    """Raises a UserError for names that are not in ``channels`` or offset groups that do not divide the channels."""
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
