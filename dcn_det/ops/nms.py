"""Non-maximum suppression: :func:`nms` over all boxes, :func:`batched_nms` per class."""

from __future__ import annotations

import torch
from torch import Tensor

from dcn_det.ops import library
from dcn_det.ops.checks import fault_of, is_int, is_number
from dcn_det.ops.reference import nms as reference

OPERATOR = torch.ops.dcn_det.nms
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, max_keep: int | None = None) -> Tensor:
    """Performs greedy non-maximum suppression: keeps the highest-scoring box among those that overlap.

    A box is kept unless its intersection over union with a kept box of higher score exceeds the threshold.
    The kept boxes are those of ``torchvision.ops.nms``.

    Args:
        boxes: (N, 4) half-open (x1, y1, x2, y2): the width is x2 - x1. float32, float64, float16 or bfloat16.
        scores: (N,), one of the same dtypes.
        iou_threshold: in [0, 1].
        max_keep: maximum number of kept boxes, at least 1; None for no limit.

    Returns:
        int64 indices of the kept boxes by decreasing score, then by index.

    Raises:
        ValueError: if an argument is invalid; the message gives its name, its value and what was expected.

    Overlaps are computed in float64 if boxes or scores are float64, else in float32, also under autocast.
    Boxes whose score is NaN are never kept and suppress nothing. Boxes with non-finite coordinates overlap
    nothing. There are no gradients. The result is the same on every device and for any number of threads.
    """
    _check("nms", boxes, scores, None, iou_threshold, max_keep)
    return OPERATOR(boxes, scores, None, iou_threshold, max_keep)


def batched_nms(
    boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float, max_keep: int | None = None
) -> Tensor:
    """Performs :func:`nms` per class: boxes with different labels do not suppress each other.

    Boxes are compared unchanged; shifting each class by an offset would lose precision.

    Args:
        boxes: see :func:`nms`.
        scores: see :func:`nms`.
        labels: (N,) integers of any value.
        iou_threshold: see :func:`nms`.
        max_keep: maximum number of kept boxes over all classes; None for no limit.

    Returns:
        int64 indices of the kept boxes of all classes, ordered as in :func:`nms`.

    Raises:
        ValueError: if an argument is invalid; the message gives its name, its value and what was expected.
    """
    _check("batched_nms", boxes, scores, labels, iou_threshold, max_keep)
    return OPERATOR(boxes, scores, labels, iou_threshold, max_keep)


def _check(
    caller: str,
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor | None,
    iou_threshold: float,
    max_keep: int | None,
) -> None:
    def fail(name: str, got: str, expected: str) -> None:
        raise ValueError(f"{caller}: {name} is {got}; expected {expected}")

    faults = {"boxes": fault_of(boxes), "scores": fault_of(scores)}
    if caller != "nms":
        faults["labels"] = fault_of(labels, INTEGERS, "an integer dtype")
    for name, fault in faults.items():
        if fault is not None:
            fail(name, *fault)
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        fail("boxes", f"of shape {tuple(boxes.shape)}", "(N, 4): x1, y1, x2, y2")
    if boxes.is_meta and type(boxes) is Tensor:
        fail("boxes", "on meta", "a device that holds values: the number of kept boxes depends on them")
    for name, tensor in (("scores", scores), ("labels", labels)):
        if tensor is None:
            continue
        if tensor.dim() != 1 or tensor.shape[0] != boxes.shape[0]:
            fail(name, f"of shape {tuple(tensor.shape)}", f"({boxes.shape[0]},): one per box")
        if tensor.device != boxes.device:
            fail(name, f"on {tensor.device}", f"{boxes.device}, like the boxes")
    if not is_number(iou_threshold) or not 0 <= iou_threshold <= 1:
        fail("iou_threshold", repr(iou_threshold), "a number in [0, 1]")
    if max_keep is not None and (not is_int(max_keep) or max_keep < 1):
        fail("max_keep", repr(max_keep), "an int of at least 1, or None")


def _fake(boxes: Tensor, scores: Tensor, labels: Tensor | None, iou_threshold: float, max_keep: int | None) -> Tensor:
    _check("nms" if labels is None else "batched_nms", boxes, scores, labels, iou_threshold, max_keep)
    kept = torch.library.get_ctx().new_dynamic_size()
    return boxes.new_empty(kept, dtype=torch.int64)


library.register("nms", plain=reference.nms, fake=_fake)
