"""Bins of deformable RoI pooling.

Source: Dai et al., "Deformable Convolutional Networks" (2017), section 2.2 and Figure 7.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dcn_det.inference.predictor import Predictor
from dcn_det.models.detector import TwoStageDetector
from dcn_det.precision import autocast
from dcn_det.structures import Batch, Detections
from dcn_det.visualize.offsets import BinOffsets, reading_bin_offsets


@dataclass(frozen=True, slots=True)
class Parts:
    """Bins of deformable RoI pooling of one detection, whose box is pooled as a RoI.

    Attributes:
        box: float64 (4,), half-open xyxy in pixels of the original image.
        label, score: of the detection.
        bins: float64 (k, k, 4), the moved bins by row and column, as ``box``. Heads that move bins per class do so for
            the class of the detection.
    """

    box: Tensor
    label: int
    score: float
    bins: Tensor


def parts_of(predictor: Predictor, batch: Batch, detections: Detections) -> Iterator[Parts]:
    """Pools the box of each detection as a RoI, and reads how its bins move; yields nothing if they do not.

    Args:
        predictor: the detector.
        batch: one image, not mirrored.
        detections: in pixels of the original image.
    """
    model: Any = predictor.model
    if not isinstance(model, TwoStageDetector):
        return
    head: Any = model.head
    info, device = batch.infos[0], predictor.device
    scale = torch.tensor(info.scale * 2, dtype=torch.float64)
    readings: list[BinOffsets] = []
    with torch.inference_mode(), autocast(device, predictor.precision), reading_bin_offsets(model, readings.append):
        features = model.extract(batch.to(device))
        for box, score, label in zip(detections.boxes.double(), detections.scores, detections.labels):
            readings.clear()
            head(features.head, [(box * scale).to(device, torch.float32)[None]])
            if not readings:
                return
            # Scores come before box deltas, which have one class; other levels of a pyramid pool no RoI.
            classes = max(reading.offset.shape[1] for reading in readings) // 2
            offset = torch.cat([each.offset for each in readings if each.offset.shape[1] == 2 * classes])[0]
            own = offset.double().cpu().unflatten(0, (classes, 2))[int(label) + 1 if classes > 1 else 0]
            yield Parts(
                box, int(label), float(score), moved_bins(box * scale, own * readings[0].head.offset_std) / scale
            )


def moved_bins(box: Tensor, moves: Tensor) -> Tensor:
    """Computes the bins of deformable RoI pooling.

    Corners are rounded as :func:`dcn_det.ops.deform_psroi_pool` rounds them; in pixels, its shift of half a cell is the
    convention that a cell stands for the pixels around its middle.

    Args:
        box: (4,), half-open xyxy in pixels of the network's input.
        moves: (2, k, k), x and y by row and column, as fractions of the width and the height of the region.

    Returns:
        (k, k, 4), half-open xyxy in pixels of the network's input.
    """
    count = moves.shape[-1]
    inclusive = box - box.new_tensor((0, 0, 1, 1))
    rounded = inclusive.sign() * (inclusive.abs() + 0.5).floor()  # halves away from zero
    start, size = rounded[:2], (rounded[2:] + 1 - rounded[:2]).clamp(min=0.1)
    grid = torch.arange(count, dtype=box.dtype) / count
    corner = torch.stack(torch.meshgrid(grid, grid, indexing="xy"), dim=-1) + moves.permute(1, 2, 0)
    first = start + corner * size
    return torch.cat((first, first + size / count), dim=-1)
