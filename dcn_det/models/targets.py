"""What each anchor and each RoI should predict: matching with the ground truth, and sampling."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

POSITIVE, NEGATIVE, IGNORED = 1, 0, -1


def sampling_generator(seed: int, stream: int) -> torch.Generator:
    """A CPU generator for one purpose (``stream``) of one image (``seed``, from ``ImageInfo.seed``)."""
    # The generator uses 32 bits of its seed only, so the two numbers are mixed rather than added.
    state = np.random.SeedSequence(seed, spawn_key=(stream,)).generate_state(1)
    return torch.Generator().manual_seed(int(state[0]))


def match_anchors(iou: Tensor, positive_iou: float, negative_iou: float) -> tuple[Tensor, Tensor]:
    """Labels anchors by their overlap with the ground truth, as the RPN does (Ren et al., NeurIPS 2015).

    An anchor is positive when its best IoU is at least ``positive_iou`` or when no anchor overlaps
    some ground-truth box more than it does (ties included); otherwise negative when its best IoU is below
    ``negative_iou``; otherwise ignored. A box that no anchor touches makes nothing positive.

    Args:
        iou: (N, G) anchors by ground-truth boxes; G may be 0, then all anchors are negative.

    Returns:
        labels: int64 (N,), 1 positive, 0 negative, -1 ignored.
        matches: int64 (N,), the ground-truth box of highest IoU (0 when G is 0).
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
    """``count`` of the candidates without replacement; all of them, in order, when there are no more."""
    if len(candidates) <= count:
        return candidates
    return candidates[torch.randperm(len(candidates), generator=generator)[:count]]


def sample_anchors(
    labels: Tensor, batch: int, positive_fraction: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draws the anchors that are trained on.

    Args:
        labels: int64 (N,) from :func:`match_anchors`.
        batch: how many to draw; negatives fill up what positives leave.
        positive_fraction: at most this share is positive.

    Returns:
        Indices of the positives and of the negatives, int64, on the device of ``labels``.
    """
    # Drawing on the CPU gives the same anchors whatever the device.
    on_cpu = labels.cpu()
    positive = _choose((on_cpu == POSITIVE).nonzero()[:, 0], int(batch * positive_fraction), generator)
    negative = _choose((on_cpu == NEGATIVE).nonzero()[:, 0], batch - len(positive), generator)
    return positive.to(labels.device), negative.to(labels.device)


@dataclass(frozen=True, slots=True)
class RoISamples:
    """RoIs of one image to train on.

    Attributes:
        boxes: float32 (R, 4), half-open pixels; the foreground comes first.
        classes: int64 (R,), 0 for background, otherwise label + 1.
        matched: float32 (F, 4), the ground-truth boxes of the F foreground RoIs.
    """

    boxes: Tensor
    classes: Tensor
    matched: Tensor


@dataclass(frozen=True, slots=True)
class RoISampler:
    """Draws RoIs as Fast R-CNN does (Girshick, ICCV 2015), with the choices of the authors' released code.

    The candidates are the proposals and the ground-truth boxes. Foreground has a best IoU of at least
    ``positive_iou``, background in [``negative_iou[0]``, ``negative_iou[1]``). When these are too few the
    batch is topped up with RoIs drawn from all candidates, whatever their IoU, as background.

    With ``ohem``, online hard example mining (Shrivastava et al., CVPR 2016), nothing is drawn: all candidates that
    are foreground or background are returned, and the head keeps the ``batch_per_image`` with the largest loss.

    Attributes:
        batch_per_image: RoIs per image.
        positive_fraction: largest share of foreground, 0.25 when None; without meaning with ``ohem``.
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
        """Draws from one image.

        Args:
            candidates: float32 (N, 4), half-open pixels.
            iou: (N, G) of the candidates with the ground truth.
            gt_boxes: float32 (G, 4); G may be 0.
            gt_labels: int64 (G,), 0-based.
            generator: on the CPU.
        """
        n, g = iou.shape
        if g and n:
            best, matches = iou.max(dim=1)
        else:
            best, matches = iou.new_zeros(n), iou.new_zeros(n, dtype=torch.int64)
        # Drawing on the CPU gives the same RoIs whatever the device.
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
