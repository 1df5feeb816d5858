"""From scored boxes to detections."""

from __future__ import annotations

from torch import Tensor

from dcn_det.ops import batched_nms
from dcn_det.structures import Detections


def select_detections(
    scores: Tensor, boxes: Tensor, *, score_threshold: float, nms_iou: float, max_detections: int
) -> Detections:
    """Keeps confident boxes, suppresses duplicates within each class, and keeps the best of all classes.

    Args:
        scores: float32 (R, C), one column a label.
        boxes: float32 (R, C, 4), half-open pixels.
        score_threshold: a box needs more than this.
        nms_iou: a box overlapping a better one of its class by more than this is dropped.
        max_detections: of all classes together.

    Returns:
        Detections, best first, in the pixels of ``boxes``.
    """
    row, label = (scores > score_threshold).nonzero(as_tuple=True)
    boxes, scores = boxes[row, label].contiguous(), scores[row, label]
    keep = batched_nms(boxes, scores, label, nms_iou, max_keep=max_detections)
    return Detections(boxes[keep], scores[keep], label[keep])
