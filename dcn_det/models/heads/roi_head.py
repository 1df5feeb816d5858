"""What second stages share: the RoIs they train on, their losses, and the way from predictions to boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcn_det.models import boxes as box_ops
from dcn_det.models.losses import cross_entropy, smooth_l1
from dcn_det.models.targets import RoISampler, RoISamples, sampling_generator
from dcn_det.structures import ImageInfo, Target

# Tells the RoIs' random numbers from those of the anchors of the same image.
ROI_STREAM = 1


class RoIHead(nn.Module):
    """Base of the second stages: a subclass says how RoIs become class scores and box deltas.

    It has ``prepare``, the work that does not depend on RoIs, and ``forward``, which takes what ``prepare``
    returns and the boxes of each image and returns logits (R, num_classes + 1), background first, and deltas
    (R, D, 4) in units of ``box_stds``. With ``class_agnostic`` the last of the D sets of deltas serves every
    class, otherwise there are ``num_classes + 1``.

    Args:
        num_classes: without background.
        class_agnostic: one set of box deltas instead of one for each class.
        sampler: chooses the RoIs to train on.
        box_stds: the box deltas are learned divided by these.
        sigma: of the smooth L1 loss.
        loss_weight: on both losses.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        class_agnostic: bool,
        sampler: RoISampler,
        box_stds: box_ops.Stds = (0.1, 0.1, 0.2, 0.2),
        sigma: float = 1.0,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.class_agnostic = class_agnostic
        self.sampler = sampler
        self.box_stds = box_stds
        self.sigma = sigma
        self.loss_weight = loss_weight

    def losses(
        self, maps: Any, proposals: Sequence[Tensor], infos: Sequence[ImageInfo], targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """Training losses.

        For each image the classification loss is the mean over the chosen RoIs, the box loss the sum over the
        foreground ones divided by ``sampler.batch``; both are then averaged over the images. With online hard
        example mining the chosen ones are the ``sampler.batch`` RoIs whose sum of both losses is largest.

        Args:
            maps: from ``prepare``.
            proposals: for each image (N_i, 4), half-open pixels of the network's input.

        Returns:
            ``head_cls`` and ``head_box``, float32 scalars. They are part of the graph even where they are 0.
        """
        samples = [self._draw(*each) for each in zip(proposals, infos, targets)]
        logits, deltas = self(maps, [sample.boxes for sample in samples])
        counts = [len(sample.boxes) for sample in samples]
        cls_losses, box_losses = [], []
        for sample, image_logits, image_deltas in zip(samples, logits.split(counts), deltas.split(counts)):
            cls, box = cross_entropy(image_logits, sample.classes), self._box_losses(sample, image_deltas)
            if self.sampler.hard:
                hardest = (cls + box).detach().sort(descending=True, stable=True).indices[: self.sampler.batch]
                cls, box = cls[hardest], box[hardest]
            cls_losses.append(cls.sum() / max(len(cls), 1))
            box_losses.append(box.sum() / self.sampler.batch)
        return {
            "head_cls": self.loss_weight * torch.stack(cls_losses).mean(),
            "head_box": self.loss_weight * torch.stack(box_losses).mean(),
        }

    def _draw(self, proposals: Tensor, info: ImageInfo, target: Target) -> RoISamples:
        candidates = torch.cat([proposals, target.boxes])
        iou = box_ops.iou_matrix(candidates, target.boxes)
        generator = sampling_generator(info.seed, ROI_STREAM)
        return self.sampler(candidates, iou, target.boxes, target.labels, generator)

    def _box_losses(self, sample: RoISamples, deltas: Tensor) -> Tensor:
        """(R,) the smooth L1 loss of each RoI, summed over its four deltas; 0 for background."""
        count = len(sample.matched)
        row = torch.arange(count, device=deltas.device)
        column = torch.full_like(row, -1) if self.class_agnostic else sample.classes[:count]
        goal = box_ops.encode(sample.boxes[:count], sample.matched, self.box_stds)
        losses = smooth_l1(deltas[row, column], goal, self.sigma).sum(dim=1)
        return F.pad(losses, (0, len(sample.boxes) - count))

    @torch.no_grad()
    def predict(self, maps: Any, boxes: Sequence[Tensor], infos: Sequence[ImageInfo]) -> list[tuple[Tensor, Tensor]]:
        """Class probabilities and refined boxes.

        Args:
            maps: from ``prepare``.
            boxes: for each image (R_i, 4), half-open pixels of the network's input.

        Returns:
            For each image the scores (R_i, num_classes), one column a label and none for background, and the
            boxes (R_i, num_classes, 4), clipped to the image; float32.
        """
        logits, deltas = self(maps, boxes)
        counts = [len(image_boxes) for image_boxes in boxes]
        scores = logits.float().softmax(dim=1)[:, 1:]
        deltas = deltas.float()
        deltas = deltas[:, -1:].expand(-1, self.num_classes, -1) if self.class_agnostic else deltas[:, 1:]
        results = []
        for old, image_scores, image_deltas, info in zip(boxes, scores.split(counts), deltas.split(counts), infos):
            new = box_ops.decode(old[:, None].float(), image_deltas, self.box_stds)
            results.append((image_scores, box_ops.clip(new, info.input_height, info.input_width)))
        return results
