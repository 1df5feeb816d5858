"""Non-maximum suppression: the public functions and their dispatch rules."""

from __future__ import annotations

import torch
from torch import Tensor

from dcn_det.ops import library
from dcn_det.ops.reference import nms as reference

OPERATOR = torch.ops.dcn_det.nms
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, max_keep: int | None = None) -> Tensor:
    """Keeps the best of boxes that overlap.

    Boxes are taken by decreasing score, equal scores by increasing index, and one is kept unless its
    intersection over union with a box kept before it is above ``iou_threshold``. The kept set is that of
    ``torchvision.ops.nms``, of which the result is a prefix when ``max_keep`` cuts it short.

    Args:
        boxes: (N, 4) half-open (x1, y1, x2, y2), float32, float64, float16 or bfloat16; area
            ``(x2 - x1) * (y2 - y1)``.
        scores: (N,), any of these dtypes.
        iou_threshold: in [0, 1].
        max_keep: the search ends when so many boxes are kept; None for all.

    Returns:
        int64 indices of the kept boxes, by decreasing score.

    Raises:
        ValueError: an argument does not fit; the message tells which, what it is and what was expected.

    A box with a NaN score or coordinate is never kept and suppresses nothing; infinite scores are ordered
    as numbers, and a box of infinite or no area overlaps nothing. Half precision is computed in float32.
    There is no gradient. The result is deterministic on every device. On CUDA, work and memory grow with
    the square of N (N ** 2 / 8 bytes), and the device is waited for once, because the size of the result is
    not known before.
    """
    return _nms("nms", boxes, scores, None, iou_threshold, max_keep)


def batched_nms(
    boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float, max_keep: int | None = None
) -> Tensor:
    """:func:`nms` for many classes at once: boxes of different labels do not suppress each other.

    Each class is searched on its own, without moving boxes apart by their label, which would cost coordinates
    their digits.

    Args:
        boxes: (N, 4); see :func:`nms`.
        scores: (N,).
        labels: int64 (N,), any values.
        iou_threshold: in [0, 1].
        max_keep: the number of boxes kept over all classes; None for all.

    Returns:
        int64 indices of the kept boxes of all classes, by decreasing score.

    Raises:
        ValueError: as :func:`nms`.
    """
    return _nms("batched_nms", boxes, scores, labels, iou_threshold, max_keep)


def _nms(
    caller: str,
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor | None,
    iou_threshold: float,
    max_keep: int | None,
) -> Tensor:
    def error(name: str, got: str, expected: str) -> ValueError:
        return ValueError(f"{caller}: {name} is {got}; expected {expected}")

    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise error("boxes", f"of shape {tuple(boxes.shape)}", "(N, 4)")
    for name, tensor in (("scores", scores), ("labels", labels)):
        if tensor is None:
            continue
        if tensor.dim() != 1 or tensor.shape[0] != boxes.shape[0]:
            raise error(name, f"of shape {tuple(tensor.shape)}", f"({boxes.shape[0]},), one for each box")
        if tensor.device != boxes.device:
            raise error(name, f"on {tensor.device}", f"{boxes.device}, as the boxes")
    for name, tensor in (("boxes", boxes), ("scores", scores)):
        if tensor.dtype not in DTYPES:
            raise error(name, str(tensor.dtype), "float32, float64, float16 or bfloat16")
    if labels is not None and labels.dtype != torch.int64:
        raise error("labels", str(labels.dtype), "int64")
    if not 0 <= iou_threshold <= 1:
        raise error("iou_threshold", repr(iou_threshold), "a number in [0, 1]")
    if max_keep is not None and max_keep < 0:
        raise error("max_keep", repr(max_keep), "None or an int of at least 0")
    dtype = torch.float64 if torch.float64 in (boxes.dtype, scores.dtype) else torch.float32
    return OPERATOR(boxes.to(dtype), scores.to(dtype), labels, iou_threshold, max_keep)


def _fake(
    boxes: Tensor, scores: Tensor, labels: Tensor | None, iou_threshold: float, max_keep: int | None
) -> Tensor:
    kept = torch.library.get_ctx().new_dynamic_size()
    return boxes.new_empty(kept, dtype=torch.int64)


library.register("nms", plain=reference.nms, fake=_fake)
