"""The class-aware RPN: a complete one-stage detector made of an RPN that tells classes apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcn_det.models import boxes as box_ops
from dcn_det.models import initialize
from dcn_det.models.anchor_head import AnchorHead, AnchorSampling, RPNOutput
from dcn_det.precision import in_full_precision
from dcn_det.structures import ImageInfo


class ClassAwareRPN(AnchorHead):
    """The RPN of Faster R-CNN with a classifier for all classes in the place of object or not.

    Dai et al. (ICCV 2017, section 4.2) say no more than that, and that it is trained on 256 anchors an image. What
    they leave open is chosen as follows, and an argument where it is not forced:

    - It reads res5, since the paper's tables change with the convolutions of res5.
    - A 1x1 convolution of 1024 channels and ReLU, then the 1x1 outputs. The paper's parameter counts have no
      room for the RPN's 3x3 convolution as well; ``conv_channels`` adds it.
    - One set of box deltas an anchor, as only the classifier is said to change.
    - Overlaps, share of positives, losses and their weights as in the RPN. But anchors that leave the image are
      trained, too, as in SSD: in testing they count like the others, and here no second stage finds out those
      that never learnt anything. ``AnchorSampling.cross_border`` turns that off.
    - Boxes are suppressed within each class as in the two-stage detectors. Before that, only the ``pre_nms``
      anchors of highest score for any class are kept, as many as the RPN keeps.

    New layers start from N(0, 0.01), biases from 0. Which cells an image has: see :class:`AnchorHead`.

    Args:
        in_channels: of the feature map.
        num_classes: without background.
        anchors: (A, 4) anchors of the top-left cell, half-open pixels.
        stride: of the feature map, in input pixels.
        channels: of the 1x1 convolution.
        conv_channels: of a 3x3 convolution with ReLU after it; 0 leaves it out.
        sampling: how anchors are chosen for training; with those that leave the image unless given.
        pre_nms: anchors that may become detections.
        hidden_init: initialization of the layers before the outputs: ``normal``, N(0, 0.01), or ``he``, for narrow
            networks trained from scratch.
        **options: see :class:`dcn_det.models.anchor_head.AnchorHead`.
    """

    num_classes: int

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
        """(B, in_channels, H, W) -> predictions for every anchor of every cell."""
        x = F.relu(self.reduce(features), inplace=True)
        if self.conv is not None:
            x = F.relu(self.conv(x), inplace=True)
        return RPNOutput(in_full_precision(self.cls_score, x), in_full_precision(self.bbox_pred, x))

    @torch.no_grad()
    def predict(self, output: RPNOutput, infos: Sequence[ImageInfo]) -> list[tuple[Tensor, Tensor]]:
        """Class probabilities and boxes of the best anchors.

        Returns:
            For each image, with R <= ``pre_nms``, the scores (R, num_classes), one column a label and none for
            background, and the boxes (R, num_classes, 4), the same for all classes, half-open pixels of the
            network's input, clipped to the image; float32.
        """
        return [self._predict(*self._of_image([output], index, info), info) for index, info in enumerate(infos)]

    def _predict(self, anchors: Tensor, logits: Tensor, deltas: Tensor, info: ImageInfo) -> tuple[Tensor, Tensor]:
        scores = logits.softmax(dim=1)[:, 1:]
        best = scores.amax(dim=1)
        # A NaN, which compares false, is no score.
        usable = (best >= 0).nonzero()[:, 0]
        order = usable[best[usable].sort(descending=True, stable=True).indices[: self.pre_nms]]
        boxes = box_ops.decode(anchors[order], deltas[order])
        boxes = box_ops.clip(boxes, info.input_height, info.input_width)
        return scores[order], boxes[:, None].expand(-1, self.num_classes, -1)
