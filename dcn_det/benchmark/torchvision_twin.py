"""torchvision's Faster R-CNN with the layers and settings of one of our configs."""

from __future__ import annotations

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.models.resnet import BasicBlock, conv1x1
from torchvision.ops import Conv2dNormActivation, roi_pool

from dcn_det.benchmark.train import TorchvisionDetector
from dcn_det.config import Config
from dcn_det.config.model import FasterRCNNConfig, FasterRCNNHeadConfig, ResNetConfig, RPNConfig
from dcn_det.errors import UserError
from dcn_det.models.backbones.resnet import BASIC, DEPTHS

STRIDE = 16
"""Of res4, and of res5 with ``res5_stride: 1``."""


class TorchvisionTwin(TorchvisionDetector):
    """Plain Faster R-CNN of a config, from torchvision's parts: blocks, RPN, sampling, head, losses, NMS.

    Layers and their widths, input, anchors, matching, numbers of samples and proposals, and post-processing are those
    of the config. What torchvision has no setting for differs:

    - anchors are centered on multiples of the stride, not half a stride later; ours have the rounded sides of the
      released code, a few percent off; those that leave the image are trained (``model.rpn.cross_border``);
    - the RPN has one score for each anchor, not two;
    - the box loss of the head is quadratic below 1/9 (``model.head.sigma: 3``), not below 1;
    - layers start from torchvision's initialization, not ``hidden_init``.

    Args:
        config: settings that :func:`check` accepts.
        classes: number of classes, without background.
    """

    def __init__(self, config: Config, classes: int) -> None:
        check(config)
        model, resize = config.model, config.data.resize
        assert isinstance(model, FasterRCNNConfig) and isinstance(model.backbone, ResNetConfig)
        preprocess = model.backbone.preprocess
        super().__init__(
            GeneralizedRCNN(
                _Body(model.backbone, model.head.channels),
                _rpn(model.rpn, 4 * model.backbone.width),
                _roi_heads(model.head, config, classes),
                GeneralizedRCNNTransform(
                    resize.short_side,
                    resize.max_side,
                    [value / 255 for value in preprocess.mean],
                    [value / 255 for value in preprocess.std],
                ),
            )
        )


def check(config: Config) -> None:
    """Checks that a config can be built from torchvision's parts.

    Raises:
        UserError: it cannot.
    """
    model = config.model
    if not isinstance(model, FasterRCNNConfig) or not isinstance(model.backbone, ResNetConfig):
        raise UserError(
            f"{config.name}: model.kind {model.kind} with {model.backbone.kind} has no twin in torchvision; "
            "use Faster R-CNN with a ResNet, such as configs/fod/faster_rcnn.yaml"
        )
    backbone, head = model.backbone, model.head
    wanted: list[tuple[str, object, tuple[object, ...]]] = [
        ("model.fpn", model.fpn, (False,)),
        ("model.backbone.kind", backbone.kind, BASIC),
        ("model.backbone.weights", backbone.weights, ("none",)),
        ("model.backbone.norm", backbone.norm, ("bn",)),
        ("model.backbone.stem_pool", backbone.stem_pool, ("pad",)),
        ("model.backbone.frozen_stages", backbone.frozen_stages, (0,)),
        ("model.backbone.res5_stride", backbone.res5_stride, (1,)),
        ("model.backbone.deform.blocks", list(backbone.deform.blocks), ([],)),
        ("model.rpn.anchors.base_size", model.rpn.anchors.base_size, ("stride", STRIDE)),
        ("model.head.pooling", head.pooling, ("max",)),
        ("model.head.class_agnostic", head.class_agnostic, (False,)),
        ("model.head.ohem", head.ohem, (False,)),
        ("model.head.negative_iou", list(head.negative_iou), ([0, head.positive_iou],)),
        ("data.short_sides", list(config.data.short_sides), ([],)),
        ("test.nms", config.test.nms, ("hard",)),
    ]
    if not isinstance(backbone.res5_dilation, int):
        wanted.append(("model.backbone.res5_dilation", list(backbone.res5_dilation), ("one number",)))
    for key, value, allowed in wanted:
        if value not in allowed:
            raise UserError(
                f"{config.name}: torchvision has no {key} {value}; expected {' or '.join(map(str, allowed))}"
            )


class _Body(nn.Module):
    """ResNet of torchvision's basic blocks: res4, and res5 narrowed by a 1x1 convolution."""

    def __init__(self, settings: ResNetConfig, channels: int) -> None:
        super().__init__()
        width, dilation = settings.width, settings.res5_dilation
        assert isinstance(dilation, int)
        self.stem = nn.Sequential(
            nn.Conv2d(3, settings.stem_width, 7, 2, 3, bias=False),
            nn.BatchNorm2d(settings.stem_width),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1),
        )
        before, stages = settings.stem_width, []
        for number, (depth, stride) in enumerate(zip(DEPTHS[settings.kind], (1, 2, 2, settings.res5_stride))):
            stages.append(_stage(before, width << number, depth, stride))
            before = width << number
        self.stages = nn.ModuleList(stages)
        # torchvision's basic blocks take no dilation.
        dilated = [conv for conv in stages[-1].modules() if isinstance(conv, nn.Conv2d) and conv.kernel_size == (3, 3)]
        for conv in dilated:
            conv.dilation = conv.padding = (dilation, dilation)
        self.reduce = nn.Conv2d(before, channels, 1)
        self.out_channels = channels
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        x = self.stem(x)
        for stage in self.stages[:-1]:
            x = stage(x)
        return OrderedDict(res4=x, res5=F.relu(self.reduce(self.stages[-1](x))))


def _stage(before: int, channels: int, depth: int, stride: int) -> nn.Sequential:
    shortcut = None
    if stride != 1 or before != channels:
        shortcut = nn.Sequential(conv1x1(before, channels, stride), nn.BatchNorm2d(channels))
    first = BasicBlock(before, channels, stride, shortcut)
    return nn.Sequential(first, *(BasicBlock(channels, channels) for _ in range(depth - 1)))


class _RPNOnRes4(RegionProposalNetwork):
    """The RPN on res4 alone; torchvision's reads all maps of the backbone."""

    def forward(
        self, images: ImageList, features: dict[str, Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        found: tuple[list[Tensor], dict[str, Tensor]] = super().forward(images, {"res4": features["res4"]}, targets)
        return found


def _rpn(settings: RPNConfig, in_channels: int) -> RegionProposalNetwork:
    anchors = settings.anchors
    generator = AnchorGenerator((tuple(STRIDE * scale for scale in anchors.scales),), (anchors.ratios,))
    head = RPNHead(settings.channels, generator.num_anchors_per_location()[0])
    # torchvision's convolution has as many outputs as inputs.
    conv = Conv2dNormActivation(in_channels, settings.channels, kernel_size=3, norm_layer=None)
    nn.init.normal_(conv[0].weight, std=0.01)
    nn.init.zeros_(conv[0].bias)
    head.conv = nn.Sequential(conv)
    return _RPNOnRes4(
        generator,
        head,
        settings.positive_iou,
        settings.negative_iou,
        settings.batch_per_image,
        settings.positive_fraction,
        dict.fromkeys(("training", "testing"), settings.pre_nms),
        dict.fromkeys(("training", "testing"), settings.post_nms),
        settings.nms_iou,
    )


class _MaxPool(nn.Module):
    """Max RoI pooling from res5, with the signature of torchvision's MultiScaleRoIAlign."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, features: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        pooled: Tensor = roi_pool(features["res5"], boxes, self.size, 1 / STRIDE)
        return pooled


def _roi_heads(settings: FasterRCNNHeadConfig, config: Config, classes: int) -> RoIHeads:
    test = config.test
    fraction = 0.25 if settings.positive_fraction is None else settings.positive_fraction
    return RoIHeads(
        _MaxPool(settings.pooled_size),
        TwoMLPHead(settings.channels * settings.pooled_size**2, settings.hidden),
        FastRCNNPredictor(settings.hidden, classes + 1),
        settings.positive_iou,
        settings.negative_iou[1],
        settings.batch_per_image,
        fraction,
        tuple(1 / each for each in settings.box_stds),
        test.score_threshold,
        test.nms_iou,
        test.max_detections,
    )
