"""Class-aware RPN: an RPN that classifies, which makes it a complete one-stage detector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcn_det.models import boxes as box_ops
from dcn_det.models import initialize
from dcn_det.models.anchor_head import AnchorHead, AnchorSampling, RPNOutput
from dcn_det.precision import in_full_precision
from dcn_det.structures import ImageInfo


class ClassAwareRPN(AnchorHead):
    """The RPN of Faster R-CNN with a classifier over all classes instead of object and background.

    Dai et al. (ICCV 2017, section 4.2) state only this, and that 256 anchors per image are sampled for training. The
    remaining choices, most of them arguments:

    - It reads res5, since the results in the paper's tables change with the convolutions of res5.
    - A 1x1 convolution with 1024 channels and ReLU, then the 1x1 outputs. The paper's parameter counts are too small
      for an additional 3x3 convolution as in the RPN; ``conv_channels`` adds it.
    - One set of box deltas per anchor, since the paper changes only the classifier.
    - IoU thresholds, share of positives, losses and their weights as in the RPN. Anchors that extend beyond the image
      are also trained, as in SSD: they produce detections in testing, and no second stage corrects them.
      ``AnchorSampling.cross_border`` disables this.
    - Boxes are suppressed per class, as in the two-stage detectors. Before that, only the ``pre_nms`` anchors with the
      highest score of any class are kept, as many as in the RPN.

    Weights are initialized from N(0, 0.01), biases with 0. :class:`AnchorHead` defines the cells of an image.

    Args:
        in_channels: of the feature map.
        num_classes: without background.
        anchors: (A, 4) anchors of the top-left cell, half-open pixels.
        stride: of the feature map, in input pixels.
        channels: of the 1x1 convolution.
        conv_channels: of an additional 3x3 convolution with ReLU; 0 omits it.
        sampling: selection of anchors for training; by default includes those that extend beyond the image.
        pre_nms: maximum number of anchors, by score, that become detections.
        hidden_init: initialization of the layers before the outputs: ``normal``, N(0, 0.01), or ``he``, for narrow
            networks trained from scratch.
        **options: see :class:`dcn_det.models.anchor_head.AnchorHead`.
    """

    num_classes: int
    class_layers: ClassVar[Mapping[str, int]] = {"cls_score": 1}
    """Layers whose outputs are grouped by class, see :func:`dcn_det.weights.start.class_layers`."""

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        anchors: Tensor,
        stride: int,
        *,
        channels: int = 1024,
        conv_channels: int = 0,
        sampling: AnchorSampling | None = None,
        pre_nms: int = 6000,
        hidden_init: Literal["normal", "he"] = "normal",
        **options: Any,
    ) -> None:
        super().__init__(
            anchors,
            stride,
            num_classes=num_classes,
            sampling=sampling or AnchorSampling(cross_border=True),
            **options,
        )
        self.pre_nms = pre_nms
        start = initialize.START[hidden_init]
        self.reduce = nn.Conv2d(in_channels, channels, 1)
        start(self.reduce)
        self.conv: nn.Conv2d | None = None
        if conv_channels:
            self.conv = nn.Conv2d(channels, conv_channels, 3, padding=1)
            start(self.conv)
        self.cls_score = nn.Conv2d(conv_channels or channels, (num_classes + 1) * len(anchors), 1)
        self.bbox_pred = nn.Conv2d(conv_channels or channels, 4 * len(anchors), 1)
        initialize.normal(self.cls_score, self.bbox_pred)

    def forward(self, features: Tensor) -> RPNOutput:
        """Maps (B, in_channels, H, W) to predictions for every anchor of every cell."""
        x = F.relu(self.reduce(features), inplace=True)
        if self.conv is not None:
            x = F.relu(self.conv(x), inplace=True)
        return RPNOutput(in_full_precision(self.cls_score, x), in_full_precision(self.bbox_pred, x))

    @torch.no_grad()
    def predict(self, output: RPNOutput, infos: Sequence[ImageInfo]) -> list[tuple[Tensor, Tensor]]:
        """Computes class probabilities and boxes of the best anchors.

        Returns:
            For each image, with R <= ``pre_nms``: scores (R, num_classes), without a column for background, and boxes
            (R, num_classes, 4), equal for all classes, in half-open pixels of the network's input, clipped to the
            image; float32.
        """
        return [self._predict(*self._of_image([output], index, info), info) for index, info in enumerate(infos)]

    def _predict(self, anchors: Tensor, logits: Tensor, deltas: Tensor, info: ImageInfo) -> tuple[Tensor, Tensor]:
        scores = logits.softmax(dim=1)[:, 1:]
        best = scores.amax(dim=1)
        # Drops NaN, which compares false.
        usable = (best >= 0).nonzero()[:, 0]
        order = usable[best[usable].sort(descending=True, stable=True).indices[: self.pre_nms]]
        boxes = box_ops.decode(anchors[order], deltas[order])
        boxes = box_ops.clip(boxes, info.input_height, info.input_width)
        return scores[order], boxes[:, None].expand(-1, self.num_classes, -1)
