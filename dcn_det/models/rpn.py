"""Region proposal network (Ren et al., NeurIPS 2015), with the settings of the authors' released code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcn_det.models import boxes as box_ops
from dcn_det.models import initialize
from dcn_det.models.anchor_head import AnchorHead, AnchorSampling, RPNOutput
from dcn_det.ops import nms
from dcn_det.precision import in_full_precision
from dcn_det.structures import ImageInfo


@dataclass(frozen=True, slots=True)
class ProposalSelection:
    """Selection of proposals among all boxes.

    Attributes:
        pre_nms: maximum number of boxes, by score, before non-maximum suppression.
        nms_iou: boxes that overlap a better one by more than this are dropped.
        post_nms: maximum number of proposals, by score.
        min_size: boxes with a shorter side are dropped first; pixels of the original image.
    """

    pre_nms: int = 6000
    nms_iou: float = 0.7
    post_nms: int = 300
    min_size: float = 0.0


@dataclass(frozen=True, slots=True)
class Proposals:
    """Boxes of one image that probably contain an object, best first; without gradient.

    Attributes:
        boxes: float32 (N, 4), half-open pixels of the network's input, inside the image.
        scores: float32 (N,), probability of an object.
    """

    boxes: Tensor
    scores: Tensor


class RPN(AnchorHead):
    """Scores and refines anchors on one feature map, or with the same layers on every level of a pyramid.

    A 3x3 convolution with ReLU feeds two 1x1 convolutions. Weights are initialized from N(0, 0.01), biases with 0.
    :class:`AnchorHead` defines the cells of an image.

    Args:
        in_channels: of the feature map.
        anchors: (A, 4) anchors of the top-left cell, half-open pixels, or one such tensor per level.
        stride: of the feature map, in input pixels, or one per level.
        channels: of the 3x3 convolution.
        sampling: selection of anchors for training.
        selection: selection of proposals, from the boxes of all levels together.
        **options: see :class:`dcn_det.models.anchor_head.AnchorHead`.
    """

    def __init__(
        self,
        in_channels: int,
        anchors: Tensor | Sequence[Tensor],
        stride: int | Sequence[int],
        *,
        channels: int = 512,
        sampling: AnchorSampling | None = None,
        selection: ProposalSelection | None = None,
        **options: Any,
    ) -> None:
        super().__init__(anchors, stride, sampling=sampling, **options)
        self.selection = selection or ProposalSelection()
        count = self.anchors.shape[1]
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.cls_score = nn.Conv2d(channels, 2 * count, 1)
        self.bbox_pred = nn.Conv2d(channels, 4 * count, 1)
        initialize.normal(self.conv, self.cls_score, self.bbox_pred)

    def forward(self, features: Tensor) -> RPNOutput:
        """Maps (B, in_channels, H, W), one map or level, to predictions for every anchor of every cell."""
        x = F.relu(self.conv(features), inplace=True)
        return RPNOutput(in_full_precision(self.cls_score, x), in_full_precision(self.bbox_pred, x))

    @torch.no_grad()
    def proposals(self, outputs: Sequence[RPNOutput], infos: Sequence[ImageInfo]) -> list[Proposals]:
        """Decodes and clips all boxes, and selects proposals.

        If fewer than ``selection.post_nms`` boxes remain, the authors' code repeats some of them; this method does not.

        Args:
            outputs: one per level.
        """
        return [self._propose(*self._of_image(outputs, index, info), info) for index, info in enumerate(infos)]

    def _propose(self, anchors: Tensor, logits: Tensor, deltas: Tensor, info: ImageInfo) -> Proposals:
        scores = logits.softmax(dim=1)[:, 1]
        boxes = box_ops.clip(box_ops.decode(anchors, deltas), info.input_height, info.input_width)
        # Also drops NaN, which compares false.
        min_size = self.selection.min_size * box_ops.constant(boxes, info.scale)
        usable = (boxes[:, 2:] - boxes[:, :2] >= min_size).all(dim=1) & (scores >= 0)
        which = usable.nonzero()[:, 0]  # synchronizes once; indexing by a mask would do so each time
        boxes, scores = boxes[which], scores[which]
        scores, order = scores.sort(descending=True, stable=True)
        scores, boxes = scores[: self.selection.pre_nms], boxes[order[: self.selection.pre_nms]]
        keep = nms(boxes, scores, self.selection.nms_iou, max_keep=self.selection.post_nms)
        return Proposals(boxes[keep], scores[keep])
