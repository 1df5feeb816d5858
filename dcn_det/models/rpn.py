"""Region proposal network (Ren et al., NeurIPS 2015), with the choices of the authors' released code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcn_det.models import boxes as box_ops
from dcn_det.models import initialise
from dcn_det.models.anchors import grid_anchors
from dcn_det.models.losses import cross_entropy_mean, smooth_l1
from dcn_det.models.targets import match_anchors, sample_anchors, sampling_generator
from dcn_det.ops import nms
from dcn_det.structures import ImageInfo, Target

# Tells the anchors' random numbers from those of the RoIs of the same image.
ANCHOR_STREAM = 0


@dataclass(frozen=True, slots=True)
class AnchorSampling:
    """How anchors are labelled and drawn for training.

    Attributes:
        positive_iou, negative_iou: see :func:`dcn_det.models.targets.match_anchors`.
        batch: anchors an image.
        positive_fraction: at most this share is positive.
    """

    positive_iou: float = 0.7
    negative_iou: float = 0.3
    batch: int = 256
    positive_fraction: float = 0.5


@dataclass(frozen=True, slots=True)
class ProposalSelection:
    """Which of all boxes become proposals.

    Attributes:
        pre_nms: the best-scored boxes that take part in non-maximum suppression.
        nms_iou: boxes overlapping a better one by more than this are dropped.
        post_nms: the best-scored survivors kept.
        min_size: boxes with a side shorter than this are dropped first; pixels of the original image.
    """

    pre_nms: int = 6000
    nms_iou: float = 0.7
    post_nms: int = 300
    min_size: float = 0.0


@dataclass(frozen=True, slots=True)
class RPNOutput:
    """Raw predictions.

    Attributes:
        logits: (B, 2A, H, W): A background scores, then A object scores.
        deltas: (B, 4A, H, W): dx, dy, dw, dh of the first anchor, then of the next.
    """

    logits: Tensor
    deltas: Tensor


@dataclass(frozen=True, slots=True)
class Proposals:
    """Boxes of one image that probably hold something, best first; without gradient.

    Attributes:
        boxes: float32 (N, 4), half-open pixels of the network's input, inside the image.
        scores: float32 (N,), probability of an object.
    """

    boxes: Tensor
    scores: Tensor


class RPN(nn.Module):
    """Scores and refines anchors on one feature map.

    A 3x3 convolution with ReLU feeds two 1x1 convolutions. New layers start from N(0, 0.01), biases from 0.

    An image has ``floor(height / stride) x floor(width / stride)`` cells, in training and testing alike;
    the map's further rows and columns, from rounding up and from padding to the batch, are cut off.

    Args:
        in_channels: of the feature map.
        anchors: (A, 4) anchors of the top-left cell, from :func:`dcn_det.models.anchors.cell_anchors`.
        stride: of the feature map, in input pixels.
        channels: of the 3x3 convolution.
        sampling: labelling and drawing of anchors.
        selection: choice of proposals.
        sigma: of the smooth L1 loss.
        loss_weight: on both losses.
    """

    anchors: Tensor

    def __init__(
        self,
        in_channels: int,
        anchors: Tensor,
        stride: int,
        *,
        channels: int = 512,
        sampling: AnchorSampling | None = None,
        selection: ProposalSelection | None = None,
        sigma: float = 3.0,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.stride = stride
        self.sampling = sampling or AnchorSampling()
        self.selection = selection or ProposalSelection()
        self.sigma = sigma
        self.loss_weight = loss_weight
        self.register_buffer("anchors", anchors.float(), persistent=False)
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.cls_score = nn.Conv2d(channels, 2 * len(anchors), 1)
        self.bbox_pred = nn.Conv2d(channels, 4 * len(anchors), 1)
        initialise.normal(self.conv, self.cls_score, self.bbox_pred)

    def lr_multipliers(self) -> dict[str, float]:
        """Learning-rate multipliers other than 1, by parameter name: none."""
        return {}

    def forward(self, features: Tensor) -> RPNOutput:
        """(B, in_channels, H, W) -> predictions for every anchor of every cell."""
        x = F.relu(self.conv(features), inplace=True)
        return RPNOutput(self.cls_score(x), self.bbox_pred(x))

    def _of_image(self, output: RPNOutput, index: int, info: ImageInfo) -> tuple[Tensor, Tensor, Tensor]:
        """Anchors (N, 4), logits (N, 2) and deltas (N, 4) of one image, in float32."""
        height = max(info.input_height // self.stride, 1)
        width = max(info.input_width // self.stride, 1)
        logits = output.logits[index, :, :height, :width].float().unflatten(0, (2, -1))
        deltas = output.deltas[index, :, :height, :width].float().unflatten(0, (-1, 4))
        height, width = logits.shape[2:]
        anchors = grid_anchors(self.anchors, height, width, self.stride)
        return anchors, logits.permute(2, 3, 1, 0).reshape(-1, 2), deltas.permute(2, 3, 0, 1).reshape(-1, 4)

    def losses(self, output: RPNOutput, infos: Sequence[ImageInfo], targets: Sequence[Target]) -> dict[str, Tensor]:
        """Training losses.

        Only anchors wholly inside their image take part. For each image the classification loss is the mean
        over the drawn anchors, the box loss the sum over the positive ones divided by ``sampling.batch``;
        both are then averaged over the images, those without ground truth included.

        Returns:
            ``rpn_cls`` and ``rpn_box``, float32 scalars. They are part of the graph even where they are 0.
        """
        cls_losses, box_losses = [], []
        for index, (info, target) in enumerate(zip(infos, targets)):
            anchors, logits, deltas = self._of_image(output, index, info)
            inside = self._inside(anchors, info)
            labels, matches = match_anchors(
                box_ops.iou_matrix(anchors[inside], target.boxes),
                self.sampling.positive_iou,
                self.sampling.negative_iou,
            )
            generator = sampling_generator(info.seed, ANCHOR_STREAM)
            positive, negative = sample_anchors(labels, self.sampling.batch, self.sampling.positive_fraction, generator)
            drawn = torch.cat([positive, negative])
            cls_losses.append(cross_entropy_mean(logits[inside[drawn]], labels[drawn]))
            goal = box_ops.encode(anchors[inside[positive]], target.boxes[matches[positive]])
            box_loss = smooth_l1(deltas[inside[positive]], goal, self.sigma)
            box_losses.append(box_loss.sum() / self.sampling.batch)
        return {
            "rpn_cls": self.loss_weight * torch.stack(cls_losses).mean(),
            "rpn_box": self.loss_weight * torch.stack(box_losses).mean(),
        }

    @staticmethod
    def _inside(anchors: Tensor, info: ImageInfo) -> Tensor:
        """Indices of the anchors that do not leave the image."""
        limit = anchors.new_tensor([info.input_width, info.input_height])
        inside = (anchors[:, :2] >= 0).all(dim=1) & (anchors[:, 2:] <= limit).all(dim=1)
        return inside.nonzero()[:, 0]

    @torch.no_grad()
    def proposals(self, output: RPNOutput, infos: Sequence[ImageInfo]) -> list[Proposals]:
        """Decodes and clips all boxes, and keeps those that ``selection`` chooses.

        There may be fewer than ``selection.post_nms``: the authors' code repeats some, here they stay few.
        """
        return [self._propose(*self._of_image(output, index, info), info) for index, info in enumerate(infos)]

    def _propose(self, anchors: Tensor, logits: Tensor, deltas: Tensor, info: ImageInfo) -> Proposals:
        scores = logits.softmax(dim=1)[:, 1]
        boxes = box_ops.clip(box_ops.decode(anchors, deltas), info.input_height, info.input_width)
        # Written so that a NaN, which compares false, is dropped too.
        min_size = self.selection.min_size * boxes.new_tensor(info.scale)
        usable = (boxes[:, 2:] - boxes[:, :2] >= min_size).all(dim=1) & (scores >= 0)
        boxes, scores = boxes[usable], scores[usable]
        scores, order = scores.sort(descending=True, stable=True)
        scores, boxes = scores[: self.selection.pre_nms], boxes[order[: self.selection.pre_nms]]
        keep = nms(boxes, scores, self.selection.nms_iou, max_keep=self.selection.post_nms)
        return Proposals(boxes[keep], scores[keep])
