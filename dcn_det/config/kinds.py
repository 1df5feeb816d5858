"""Registration of the package's own backbones, detectors and data formats, as any other module does it."""

from dcn_det.config.data import CocoDataConfig, SampleDataConfig, VocDataConfig, YoloDataConfig
from dcn_det.config.model import (
    AlignedInceptionResNetConfig,
    ClassAwareRPNConfig,
    DeepLabConfig,
    FasterRCNNConfig,
    ResNetConfig,
    RFCNConfig,
)
from dcn_det.config.registry import (
    register_backbone,
    register_detector,
    register_format,
    register_masks,
    register_segmenter,
)
from dcn_det.config.segmentation_data import (
    CityscapesDataConfig,
    MaskFilesConfig,
    SampleMasksConfig,
    VocMasksConfig,
)

for _name in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"):
    register_backbone(_name, ResNetConfig, "dcn_det.models.build:build_resnet")
register_backbone(
    "aligned_inception_resnet",
    AlignedInceptionResNetConfig,
    "dcn_det.models.build:build_aligned_inception_resnet",
)

register_detector("faster_rcnn", FasterRCNNConfig, "dcn_det.models.build:build_faster_rcnn")
register_detector("rfcn", RFCNConfig, "dcn_det.models.build:build_rfcn")
register_detector("class_aware_rpn", ClassAwareRPNConfig, "dcn_det.models.build:build_class_aware_rpn")

register_segmenter("deeplab", DeepLabConfig, "dcn_det.models.build:build_deeplab")

register_format("coco", CocoDataConfig, "dcn_det.data.formats.coco:CocoFormat")
register_format("voc", VocDataConfig, "dcn_det.data.formats.voc:VocFormat")
register_format("yolo", YoloDataConfig, "dcn_det.data.formats.yolo:YoloFormat")
register_format("sample", SampleDataConfig, "dcn_det.data.formats.sample:SampleFormat")

register_masks("voc_masks", VocMasksConfig, "dcn_det.data.masks.voc:VocMasks")
register_masks("cityscapes", CityscapesDataConfig, "dcn_det.data.masks.cityscapes:Cityscapes")
register_masks("masks", MaskFilesConfig, "dcn_det.data.masks.files:MaskFiles")
register_masks("sample_masks", SampleMasksConfig, "dcn_det.data.masks.files:SampleMasks")
