"""Base class of networks that score and refine anchors: placement of anchors, and training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dcn_det.models import boxes as box_ops
from dcn_det.models.anchors import grid_anchors
from dcn_det.models.losses import cross_entropy_mean, smooth_l1
from dcn_det.models.preprocess import padded_side
from dcn_det.models.targets import match_anchors, sample_anchors, sampling_generator
from dcn_det.structures import ImageInfo, Target

# Separates the random numbers of anchors from those of the RoIs of the same image.
ANCHOR_STREAM = 0


@dataclass(frozen=True, slots=True)
class AnchorSampling:
    """How anchors are labelled and drawn for training.

    Attributes:
        positive_iou, negative_iou: see :func:`dcn_det.models.targets.match_anchors`.
        batch_per_image: anchors per image.
        positive_fraction: maximum share of positives.
        cross_border: whether to train anchors that extend beyond the image.
    """

    positive_iou: float = 0.7
    negative_iou: float = 0.3
    batch_per_image: int = 256
    positive_fraction: float = 0.5
    cross_border: bool = False


@dataclass(frozen=True, slots=True)
class RPNOutput:
    """Raw predictions on one map; K is 2 for an RPN, num_classes + 1 for a class-aware one.

    Attributes:
        logits: (B, K * A, H, W): A background scores, then A scores of each class.
        deltas: (B, 4 * A, H, W): dx, dy, dw, dh of each anchor.
    """

    logits: Tensor
    deltas: Tensor


class AnchorHead(nn.Module):
    """Base class of networks that score and refine anchors, on one map or on every level of a pyramid.

    An image has ``floor(height / stride) x floor(width / stride)`` cells, both in training and in testing; height and
    width are first rounded up to multiples of ``size_multiple``. Further rows and columns of the map, which come from
    rounding up and from padding to the batch, are cut off.

    Args:
        anchors: (A, 4) anchors of the top-left cell, half-open pixels, or one such tensor per level.
        stride: of the feature map, in input pixels, or one per level.
        num_classes: without background; None only separates objects from background.
        sampling: selection of anchors for training.
        size_multiple: of :class:`dcn_det.models.preprocess.Preprocess`.
        sigma: of the smooth L1 loss.
        loss_weight: on both losses.
    """

    anchors: Tensor

    def __init__(
        self,
        anchors: Tensor | Sequence[Tensor],
        stride: int | Sequence[int],
        *,
        num_classes: int | None = None,
        sampling: AnchorSampling | None = None,
        size_multiple: int = 1,
        sigma: float = 3.0,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        levels = [anchors] if isinstance(anchors, Tensor) else list(anchors)
        self.strides = (stride,) if isinstance(stride, int) else tuple(stride)
        self.num_classes = num_classes
        self.sampling = sampling or AnchorSampling()
        self.size_multiple = size_multiple
        self.sigma = sigma
        self.loss_weight = loss_weight
        self.register_buffer("anchors", torch.stack(levels).float(), persistent=False)
        if len(levels) != len(self.strides):
            raise ValueError(f"expected anchors for each of {len(self.strides)} strides, got {len(levels)}")

    def lr_multipliers(self) -> dict[str, float]:
        """Returns learning-rate multipliers other than 1, by parameter name: none."""
        return {}

    def _of_image(self, outputs: Sequence[RPNOutput], index: int, info: ImageInfo) -> tuple[Tensor, Tensor, Tensor]:
        """Returns anchors (N, 4), logits (N, K) and deltas (N, 4) of one image, in float32, level by level."""
        levels = [
            self._of_level(output, cell, stride, index, info)
            for output, cell, stride in zip(outputs, self.anchors, self.strides, strict=True)
        ]
        anchors, logits, deltas = (torch.cat(parts) for parts in zip(*levels))
        return anchors, logits, deltas

    def _of_level(
        self, output: RPNOutput, cell: Tensor, stride: int, index: int, info: ImageInfo
    ) -> tuple[Tensor, Tensor, Tensor]:
        height, width = (
            max(padded_side(side, self.size_multiple) // stride, 1) for side in (info.input_height, info.input_width)
        )
        logits = output.logits[index, :, :height, :width].float().unflatten(0, (-1, len(cell)))
        deltas = output.deltas[index, :, :height, :width].float().unflatten(0, (-1, 4))
        classes, _, height, width = logits.shape
        anchors = grid_anchors(cell, height, width, stride)
        return anchors, logits.permute(2, 3, 1, 0).reshape(-1, classes), deltas.permute(2, 3, 0, 1).reshape(-1, 4)

    def losses(
        self, outputs: Sequence[RPNOutput], infos: Sequence[ImageInfo], targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """Computes the training losses.

        Unless ``sampling.cross_border``, only anchors entirely inside their image are used. The classification loss of
        an image is the mean over the sampled anchors, its box loss the sum over the positive ones divided by
        ``sampling.batch_per_image``; both are averaged over all images, including those without objects.

        Args:
            outputs: one per level.

        Returns:
            ``rpn_cls`` and ``rpn_box``, float32 scalars, which are part of the graph even if they are 0.
        """
        cls_losses, box_losses = [], []
        for index, (info, target) in enumerate(zip(infos, targets)):
            anchors, logits, deltas = self._of_image(outputs, index, info)
            eligible = self._eligible(anchors, info)
            labels, matches = match_anchors(
                box_ops.iou_matrix(anchors[eligible], target.boxes),
                self.sampling.positive_iou,
                self.sampling.negative_iou,
            )
            generator = sampling_generator(info.seed, ANCHOR_STREAM)
            positive, negative = sample_anchors(
                labels, self.sampling.batch_per_image, self.sampling.positive_fraction, generator
            )
            drawn = torch.cat([positive, negative])
            classes = labels[drawn]
            if self.num_classes is not None:
                classes[: len(positive)] = target.labels[matches[positive]] + 1
            cls_losses.append(cross_entropy_mean(logits[eligible[drawn]], classes))
            goal = box_ops.encode(anchors[eligible[positive]], target.boxes[matches[positive]])
            box_loss = smooth_l1(deltas[eligible[positive]], goal, self.sigma)
            box_losses.append(box_loss.sum() / self.sampling.batch_per_image)
        return {
            "rpn_cls": self.loss_weight * torch.stack(cls_losses).mean(),
            "rpn_box": self.loss_weight * torch.stack(box_losses).mean(),
        }

    def _eligible(self, anchors: Tensor, info: ImageInfo) -> Tensor:
        """Returns the indices of the anchors that may be sampled."""
        if self.sampling.cross_border:
            return torch.arange(len(anchors), device=anchors.device)
        limit = box_ops.constant(anchors, (info.input_width, info.input_height))
        inside = (anchors[:, :2] >= 0).all(dim=1) & (anchors[:, 2:] <= limit).all(dim=1)
        return inside.nonzero()[:, 0]
