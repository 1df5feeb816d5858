"""Arithmetic on half-open boxes: coding, clipping, overlap, and conversion to the RoI operators' convention.

The authors' released code uses inclusive corners (``width = x2 - x1 + 1``). Adding 1 to ``x2`` and ``y2`` converts such
a box to the half-open form used here; the formulas below then produce the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

Stds = tuple[float, float, float, float]

# exp(32) times the side of any anchor exceeds any image and is far below the largest float32.
MAX_LOG_SCALE = 32.0


def constant(like: Tensor, values: tuple[float, ...]) -> Tensor:
    """Returns ``like.new_tensor(values)``, which must not be modified.

    On a GPU, tensors are cached, since copying one from the CPU synchronizes.
    """
    if like.is_cuda and type(like) is Tensor and not torch.compiler.is_compiling():
        return _kept(values, like.dtype, like.device)
    return like.new_tensor(values)


@lru_cache(maxsize=1024)
def _kept(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # also usable in training
        return torch.tensor(values, dtype=dtype, device=device)


def encode(references: Tensor, boxes: Tensor, stds: Stds = (1.0, 1.0, 1.0, 1.0)) -> Tensor:
    """Expresses boxes relative to reference boxes (Girshick et al., CVPR 2014, appendix C).

    Args:
        references: (..., 4) half-open pixels, of positive size.
        boxes: (..., 4) likewise.
        stds: the result is divided by these.

    Returns:
        (..., 4) ``dx, dy, dw, dh``: shift of the center relative to the reference size, logarithm of the size ratio.
    """
    ref_size = references[..., 2:] - references[..., :2]
    ref_centre = references[..., :2] + 0.5 * ref_size
    size = boxes[..., 2:] - boxes[..., :2]
    centre = boxes[..., :2] + 0.5 * size
    deltas = torch.cat([(centre - ref_centre) / ref_size, torch.log(size / ref_size)], dim=-1)
    return deltas / constant(deltas, stds)


def decode(references: Tensor, deltas: Tensor, stds: Stds = (1.0, 1.0, 1.0, 1.0)) -> Tensor:
    """Inverse of :func:`encode`.

    Unlike in many implementations, sizes are not limited, as in the authors' code; the boxes are clipped afterwards.
    Only ``dw`` and ``dh`` above 32 are clamped, so that the exponential stays finite, which does not affect boxes
    clipped to an image.

    Args:
        references: (..., 4) half-open pixels; broadcast against ``deltas``.
        deltas: (..., 4) as returned by :func:`encode` with the same ``stds``.

    Returns:
        (..., 4) half-open pixels, of positive size.
    """
    deltas = deltas * constant(deltas, stds)
    ref_size = references[..., 2:] - references[..., :2]
    ref_centre = references[..., :2] + 0.5 * ref_size
    centre = ref_centre + deltas[..., :2] * ref_size
    half = 0.5 * ref_size * torch.exp(deltas[..., 2:].clamp(max=MAX_LOG_SCALE))
    return torch.cat([centre - half, centre + half], dim=-1)


def clip(boxes: Tensor, height: int, width: int) -> Tensor:
    """Clips boxes to the image.

    As in the authors' code, the corner *pixels* are clipped, so that a box outside the image becomes a box of at
    least one pixel at the border: ``x1`` is in [0, width - 1] and ``x2`` in [1, width].

    Args:
        boxes: (..., 4) half-open pixels.
        height, width: of the image, in pixels.
    """
    low = constant(boxes, (0, 0, 1, 1))
    high = constant(boxes, (width - 1, height - 1, width, height))
    return torch.minimum(torch.maximum(boxes, low), high)


def area(boxes: Tensor) -> Tensor:
    """Returns the areas (...) of half-open boxes (..., 4), in square pixels."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def iou_matrix(a: Tensor, b: Tensor) -> Tensor:
    """Returns the IoU (N, M) of all pairs of half-open boxes (N, 4) and (M, 4); 0 for empty boxes."""
    a, b = a[:, None], b[None]
    size = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    intersection = size[..., 0] * size[..., 1]
    union = area(a) + area(b) - intersection
    return intersection / union.clamp(min=torch.finfo(union.dtype).tiny)


def to_rois(boxes: Sequence[Tensor]) -> Tensor:
    """Concatenates the boxes of a batch to the input of RoI operators.

    Args:
        boxes: (R_i, 4) half-open pixels, for each image.

    Returns:
        (sum R_i, 5): index of the image, then x1, y1, x2, y2 with *inclusive* corners, as the operators expect.
    """
    rows = []
    for index, image_boxes in enumerate(boxes):
        corners = image_boxes - constant(image_boxes, (0, 0, 1, 1))
        rows.append(torch.cat([corners.new_full((len(corners), 1), index), corners], dim=1))
    return torch.cat(rows)
