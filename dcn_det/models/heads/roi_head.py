"""Base class of second stages: sampling of RoIs, losses, and conversion of predictions to boxes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcn_det.models import boxes as box_ops
from dcn_det.models.losses import cross_entropy, smooth_l1
from dcn_det.models.targets import RoISampler, RoISamples, sampling_generator
from dcn_det.structures import ImageInfo, Target

# Separates the random numbers of RoIs from those of the anchors of the same image.
ROI_STREAM = 1


class RoIHead(nn.Module, ABC):
    """Base class of second stages: a subclass predicts class scores and box deltas of RoIs.

    Subclasses implement ``_prepare``, which does not depend on RoIs, and ``forward``, which takes its result and the
    boxes of each image and returns logits (R, num_classes + 1), background first, and deltas (R, D, 4) in units of
    ``box_stds``; both should be float32 also under autocast. With ``class_agnostic``, the last of the D sets of deltas
    is used for all classes; otherwise D is ``num_classes + 1``.

    With deformable pooling, the offsets of the bins pass the module ``bin_offsets``, (R, 2 * K, pooled_size,
    pooled_size) in the layout of :func:`dcn_det.ops.deform_psroi_pool`; it returns them, and hooks can read them there.

    Args:
        num_classes: without background.
        class_agnostic: one set of box deltas instead of one per class.
        sampler: samples RoIs for training.
        pooled_size: number of bins along each axis of a RoI.
        samples_per_bin: bilinear samples along each axis of a bin, in pooling by samples.
        offset_std: factor on the predicted offsets, which are relative to the RoI's size (gamma in the paper).
        offset_lr_mult: learning-rate multiplier of the layers that predict offsets.
        box_stds: divisors of the box deltas.
        sigma: of the smooth L1 loss.
        loss_weight: on both losses.
        hidden_init: initialization of the layers before the outputs: ``normal``, N(0, 0.01) as in the authors' code, or
            ``he``, for narrow heads trained from scratch.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        class_agnostic: bool,
        sampler: RoISampler,
        offset_lr_mult: float,
        pooled_size: int = 7,
        samples_per_bin: int = 4,
        offset_std: float = 0.1,
        box_stds: box_ops.Stds = (0.1, 0.1, 0.2, 0.2),
        sigma: float = 1.0,
        loss_weight: float = 1.0,
        hidden_init: Literal["normal", "he"] = "normal",
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.class_agnostic = class_agnostic
        self.sampler = sampler
        self.pooled_size = pooled_size
        self.samples_per_bin = samples_per_bin
        self.offset_std = offset_std
        self.offset_lr_mult = offset_lr_mult
        self.box_stds = box_stds
        self.sigma = sigma
        self.loss_weight = loss_weight
        self.hidden_init = hidden_init
        self.bin_offsets = nn.Identity()
        self._compiled_prepare: Callable[..., Any] | None = None

    @abstractmethod
    def _prepare(self, *features: Tensor) -> Any:
        """Computes the maps to pool from."""

    def prepare(self, *features: Tensor) -> Any:
        """Computes the maps to pool from, which do not depend on RoIs.

        Args:
            features: (B, in_channels, H, W) of each level.

        Returns:
            Maps for :meth:`forward`, of a type that the head defines.
        """
        return (self._compiled_prepare or self._prepare)(*features)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compiles :meth:`prepare` and the forward pass; arguments as of ``torch.compile``."""
        super().compile(*args, **kwargs)
        self._compiled_prepare = torch.compile(self._prepare, *args, **kwargs)

    def losses(
        self, maps: Any, proposals: Sequence[Tensor], infos: Sequence[ImageInfo], targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """Computes the training losses.

        The classification loss of an image is the mean over the sampled RoIs, its box loss the sum over the foreground
        ones divided by ``sampler.batch_per_image``; both are averaged over the images. With online hard example mining,
        the ``sampler.batch_per_image`` RoIs with the largest sum of both losses are used.

        Args:
            maps: from ``prepare``.
            proposals: (N_i, 4) for each image, half-open pixels of the network's input.

        Returns:
            ``head_cls`` and ``head_box``, float32 scalars, which are part of the graph even if they are 0.
        """
        samples = [self._draw(*each) for each in zip(proposals, infos, targets)]
        logits, deltas = self(maps, [sample.boxes for sample in samples])
        counts = [len(sample.boxes) for sample in samples]
        cls_losses, box_losses = [], []
        for sample, image_logits, image_deltas in zip(samples, logits.split(counts), deltas.split(counts)):
            cls, box = cross_entropy(image_logits, sample.classes), self._box_losses(sample, image_deltas)
            if self.sampler.ohem:
                hardest = (
                    (cls + box).detach().sort(descending=True, stable=True).indices[: self.sampler.batch_per_image]
                )
                cls, box = cls[hardest], box[hardest]
            cls_losses.append(cls.sum() / max(len(cls), 1))
            box_losses.append(box.sum() / self.sampler.batch_per_image)
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
        """Returns the smooth L1 losses (R,), summed over the four deltas of a RoI; 0 for background."""
        count = len(sample.matched)
        row = torch.arange(count, device=deltas.device)
        column = torch.full_like(row, -1) if self.class_agnostic else sample.classes[:count]
        goal = box_ops.encode(sample.boxes[:count], sample.matched, self.box_stds)
        losses = smooth_l1(deltas[row, column], goal, self.sigma).sum(dim=1)
        return F.pad(losses, (0, len(sample.boxes) - count))

    @torch.no_grad()
    def predict(self, maps: Any, boxes: Sequence[Tensor], infos: Sequence[ImageInfo]) -> list[tuple[Tensor, Tensor]]:
        """Computes class probabilities and refined boxes.

        Args:
            maps: from ``prepare``.
            boxes: (R_i, 4) for each image, half-open pixels of the network's input.

        Returns:
            For each image: scores (R_i, num_classes), without a column for background, and boxes
            (R_i, num_classes, 4), clipped to the image; float32.
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
