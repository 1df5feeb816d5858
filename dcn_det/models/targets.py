"""Training targets of anchors and RoIs: matching with the ground truth, and sampling."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

POSITIVE, NEGATIVE, IGNORED = 1, 0, -1


def sampling_generator(seed: int, stream: int) -> torch.Generator:
    """Returns a CPU generator for one purpose (``stream``) of one image (``seed``, from ``ImageInfo.seed``)."""
    # The generator uses only 32 bits of its seed, so the two numbers are hashed instead of added.
    state = np.random.SeedSequence(seed, spawn_key=(stream,)).generate_state(1)
    return torch.Generator().manual_seed(int(state[0]))


def match_anchors(iou: Tensor, positive_iou: float, negative_iou: float) -> tuple[Tensor, Tensor]:
    """Labels anchors by their overlap with the ground truth, as the RPN does (Ren et al., NeurIPS 2015).

    An anchor is positive if its highest IoU is at least ``positive_iou``, or if it has the highest IoU of all anchors
    with a ground-truth box (ties included); otherwise negative if its highest IoU is below ``negative_iou``; otherwise
    ignored. A ground-truth box that overlaps no anchor makes none positive.

    Args:
        iou: (N, G) anchors by ground-truth boxes; G may be 0, then all anchors are negative.

    Returns:
        labels: int64 (N,), 1 positive, 0 negative, -1 ignored.
        matches: int64 (N,), the ground-truth box with the highest IoU (0 if G is 0).
    """
    n, g = iou.shape
    if g == 0 or n == 0:
        return iou.new_full((n,), NEGATIVE, dtype=torch.int64), iou.new_zeros(n, dtype=torch.int64)
    best, matches = iou.max(dim=1)
    best_of_box = iou.max(dim=0).values
    labels = torch.full_like(matches, IGNORED)
    labels[best < negative_iou] = NEGATIVE
    labels[((iou == best_of_box) & (best_of_box > 0)).any(dim=1)] = POSITIVE
    labels[best >= positive_iou] = POSITIVE
    return labels, matches


def _choose(candidates: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draws ``count`` candidates without replacement, or returns all, in order, if there are no more."""
    if len(candidates) <= count:
        return candidates
    return candidates[torch.randperm(len(candidates), generator=generator)[:count]]


def sample_anchors(
    labels: Tensor, batch: int, positive_fraction: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Samples anchors for training.

    Args:
        labels: int64 (N,) from :func:`match_anchors`.
        batch: number of anchors; negatives replace missing positives.
        positive_fraction: maximum share of positives.

    Returns:
        Indices of the positives and of the negatives, int64, on the device of ``labels``.
    """
    # Sampling on the CPU makes the result independent of the device.
    on_cpu = labels.cpu()
    positive = _choose((on_cpu == POSITIVE).nonzero()[:, 0], int(batch * positive_fraction), generator)
    negative = _choose((on_cpu == NEGATIVE).nonzero()[:, 0], batch - len(positive), generator)
    return positive.to(labels.device), negative.to(labels.device)


@dataclass(frozen=True, slots=True)
class RoISamples:
    """Sampled RoIs of one image.

    Attributes:
        boxes: float32 (R, 4), half-open pixels; foreground first.
        classes: int64 (R,), 0 for background, otherwise label + 1.
        matched: float32 (F, 4), the ground-truth boxes of the F foreground RoIs.
    """

    boxes: Tensor
    classes: Tensor
    matched: Tensor


@dataclass(frozen=True, slots=True)
class RoISampler:
    """Samples RoIs as in Fast R-CNN (Girshick, ICCV 2015), with the settings of the authors' released code.

    The candidates are the proposals and the ground-truth boxes. Foreground has a highest IoU of at least
    ``positive_iou``, background one in [``negative_iou[0]``, ``negative_iou[1]``). If there are too few, the batch is
    filled with RoIs drawn from all candidates, of any IoU, as background.

    With ``ohem``, online hard example mining (Shrivastava et al., CVPR 2016), all foreground and background candidates
    are returned, and the head selects the ``batch_per_image`` ones with the largest loss.

    Attributes:
        batch_per_image: RoIs per image.
        positive_fraction: maximum share of foreground, 0.25 if None; not used with ``ohem``.
        positive_iou, negative_iou: see above.
        ohem: online hard example mining.
    """

    batch_per_image: int = 128
    positive_fraction: float | None = None
    positive_iou: float = 0.5
    negative_iou: tuple[float, float] = (0.1, 0.5)
    ohem: bool = False

    def __call__(
        self, candidates: Tensor, iou: Tensor, gt_boxes: Tensor, gt_labels: Tensor, generator: torch.Generator
    ) -> RoISamples:
        """Samples RoIs of one image.

        Args:
            candidates: float32 (N, 4), half-open pixels.
            iou: (N, G) of the candidates with the ground truth.
            gt_boxes: float32 (G, 4), half-open pixels; G may be 0.
            gt_labels: int64 (G,), 0-based.
            generator: on the CPU.
        """
        n, g = iou.shape
        if g and n:
            best, matches = iou.max(dim=1)
        else:
            best, matches = iou.new_zeros(n), iou.new_zeros(n, dtype=torch.int64)
        # Sampling on the CPU makes the result independent of the device.
        foreground, background = self._draw(best.cpu(), generator)
        index = torch.cat([foreground, background]).to(candidates.device)
        matched = matches[index[: len(foreground)]]
        classes = index.new_zeros(len(index))
        classes[: len(foreground)] = gt_labels[matched] + 1
        return RoISamples(candidates[index], classes, gt_boxes[matched])

    def _draw(self, best: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        low, high = self.negative_iou
        foreground = (best >= self.positive_iou).nonzero()[:, 0]
        background = ((best >= low) & (best < high)).nonzero()[:, 0]
        if self.ohem:
            return foreground, background
        fraction = 0.25 if self.positive_fraction is None else self.positive_fraction
        foreground = _choose(foreground, int(self.batch_per_image * fraction + 0.5), generator)
        wanted = self.batch_per_image - len(foreground)
        background = _choose(background, wanted, generator)
        while len(best) and len(background) < wanted:
            extra = torch.randperm(len(best), generator=generator)[: wanted - len(background)]
            background = torch.cat([background, extra])
        return foreground, background
