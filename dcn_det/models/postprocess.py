"""Conversion of scored boxes to detections: threshold, suppression of duplicates, voting, maximum number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dcn_det.models import boxes as box_ops
from dcn_det.ops import batched_nms, nms
from dcn_det.structures import Detections


@dataclass(frozen=True, slots=True)
class PostProcess:
    """Converts candidates, which may overlap, to detections.

    Attributes:
        score_threshold: minimum score (exclusive).
        nms: ``hard`` drops boxes that overlap a better one, ``linear`` and ``gaussian`` lower their scores, see
            :func:`soft_nms`.
        nms_iou: IoU above which a box is dropped (``hard``) or its score lowered (``linear``).
        nms_sigma: width of ``gaussian``.
        nms_class_agnostic: whether boxes of different classes suppress each other.
        max_detections: maximum per image, over all classes.
        vote_iou: see :func:`vote`; None disables voting.
    """

    score_threshold: float = 1e-3
    nms: Literal["hard", "linear", "gaussian"] = "hard"
    nms_iou: float = 0.3
    nms_sigma: float = 0.6
    nms_class_agnostic: bool = False
    max_detections: int = 100
    vote_iou: float | None = None

    def __call__(self, candidates: Detections) -> Detections:
        """Returns the best of ``candidates`` (in any order), best first, in the same pixels and on the same device."""
        boxes, scores, labels = candidates.boxes, candidates.scores, candidates.labels
        groups = torch.zeros_like(labels) if self.nms_class_agnostic else labels
        if self.nms == "hard":
            keep = (
                nms(boxes, scores, self.nms_iou, max_keep=self.max_detections)
                if self.nms_class_agnostic
                else batched_nms(boxes, scores, labels, self.nms_iou, max_keep=self.max_detections)
            )
            kept = scores[keep]
        else:
            sigma = None if self.nms == "linear" else self.nms_sigma
            keep, kept = soft_nms(
                boxes,
                scores,
                groups,
                iou_threshold=self.nms_iou,
                sigma=sigma,
                score_threshold=self.score_threshold,
                max_keep=self.max_detections,
            )
        found = Detections(boxes[keep], kept, labels[keep])
        return found if self.vote_iou is None else vote(found, candidates, self.vote_iou)


def confident(scores: Tensor, boxes: Tensor, score_threshold: float) -> Detections:
    """Returns all pairs of box and class with a score above the threshold.

    Args:
        scores: float32 (R, C), one column per label.
        boxes: float32 (R, C, 4), half-open pixels.
        score_threshold: minimum score (exclusive).

    Returns:
        Candidates by box, then by class; in the pixels of ``boxes``.
    """
    picked = (scores > score_threshold).flatten().nonzero()[:, 0]
    labels = picked % scores.shape[1]
    return Detections(boxes.flatten(0, 1)[picked], scores.flatten()[picked], labels)


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    *,
    iou_threshold: float,
    sigma: float | None,
    score_threshold: float,
    max_keep: int,
) -> tuple[Tensor, Tensor]:
    """Applies soft non-maximum suppression per class (Bodla et al., ICCV 2017, figure 2).

    Repeatedly selects the best box and lowers the scores of those of its class that overlap it. Since scores only
    decrease, boxes are selected by decreasing final score, over all classes.

    Args:
        boxes: (N, 4) half-open pixels.
        scores: (N,).
        labels: (N,) integers.
        iou_threshold: the linear rule multiplies by ``1 - IoU`` above this; the Gaussian rule has no threshold.
        sigma: of the Gaussian rule, ``exp(-IoU^2 / sigma)``; None selects the linear rule.
        score_threshold: minimum final score (exclusive).
        max_keep: maximum number of boxes.

    Returns:
        int64 indices of the selected boxes, and their final scores in the dtype of ``scores``. Of equal scores, the
        lower index is first.
    """
    corners = boxes.detach().cpu().double().numpy()
    left = scores.detach().cpu().double().numpy().copy()
    groups = labels.cpu().numpy()
    areas = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
    members: dict[int, np.ndarray] = {}
    taken: list[int] = []
    final: list[float] = []
    while len(taken) < min(max_keep, len(left)):
        best = int(left.argmax())
        if not left[best] > score_threshold:
            break
        taken.append(best)
        final.append(float(left[best]))
        label = int(groups[best])
        if label not in members:
            members[label] = np.flatnonzero(groups == label)
        others = corners[members[label]]
        size = np.minimum(others[:, 2:], corners[best, 2:]) - np.maximum(others[:, :2], corners[best, :2])
        shared = size.clip(min=0).prod(axis=1)
        iou = shared / np.maximum(areas[members[label]] + areas[best] - shared, np.finfo(np.float64).tiny)
        lower = np.where(iou > iou_threshold, 1 - iou, 1.0) if sigma is None else np.exp(-(iou**2) / sigma)
        left[members[label]] *= lower
        left[best] = -np.inf
    keep = torch.tensor(taken, dtype=torch.int64, device=boxes.device)
    return keep, torch.tensor(final, dtype=scores.dtype, device=scores.device)


def vote(kept: Detections, candidates: Detections, iou: float) -> Detections:
    """Applies box voting (Gidaris and Komodakis, ICCV 2015, section 5).

    Each kept box is replaced by the mean, weighted by score, of the candidates of its class that overlap it by at least
    ``iou``, including itself. Scores and order do not change.

    Args:
        kept: detections, a subset of the candidates.
        candidates: boxes before suppression, with the scores that are the weights.
        iou: in [0, 1].

    Returns:
        As many detections as ``kept``, in the same pixels.
    """
    ours, theirs = kept.boxes.double(), candidates.boxes.double()
    supports = (box_ops.iou_matrix(ours, theirs) >= iou) & (kept.labels[:, None] == candidates.labels[None])
    weights = supports * candidates.scores.double()
    total = weights.sum(dim=1, keepdim=True)
    mean = weights @ theirs / total.clamp(min=torch.finfo(total.dtype).tiny)
    return Detections(torch.where(total > 0, mean, ours).to(kept.boxes.dtype), kept.scores, kept.labels)
