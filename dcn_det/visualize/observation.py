"""What the deformable layers of a detector do in one image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from dcn_det.images import Image
from dcn_det.inference.predictor import Predictor, batch_of
from dcn_det.models.preprocess import padded_side
from dcn_det.structures import Detections
from dcn_det.visualize.offsets import BinOffsets, Offsets, reading_bin_offsets, reading_offsets
from dcn_det.visualize.parts import Parts, parts_of
from dcn_det.visualize.sampling import Stack, stack_of, stacked_layers


@dataclass(frozen=True, slots=True)
class Observation:
    """What deformable layers do in one image.

    Attributes:
        detections: in the original image, the best first.
        stack: the last deformable convolutions of the backbone; None if it has none.
        parts: bins of the best detections.
        readings: offsets of all deformable convolutions, in all views.
        bins: offsets of deformable RoI pooling, in all views; empty if the detector does not move bins.
    """

    detections: Detections
    stack: Stack | None
    parts: tuple[Parts, ...]
    readings: tuple[Offsets, ...]
    bins: tuple[BinOffsets, ...]


def observe(
    predictor: Predictor, image: Image, score: float = 0.0, parts: int = 0, layers: Sequence[str] | None = None
) -> Observation:
    """Detects the objects in an image, and reads the offsets of its first view.

    Args:
        predictor: the detector.
        image: uint8 (H, W, 3) RGB.
        score: minimum score of detections.
        parts: maximum number of detections whose bins are read, the best ones.
        layers: the result of :func:`dcn_det.visualize.sampling.stacked_layers` for the detector; None finds it.

    Raises:
        UserError: offsets are not finite.
    """
    model: Any = predictor.model
    model.eval()
    names = stacked_layers(model) if layers is None else layers
    readings: list[Offsets] = []
    bins: list[BinOffsets] = []
    with reading_offsets(model, readings.append), reading_bin_offsets(model, bins.append):
        detections = predictor(image).above(score)
    batch = batch_of(image, predictor.views[0])
    first: dict[str, Offsets] = {}
    for reading in readings:
        first.setdefault(reading.name, reading)
    multiple = getattr(model.preprocess, "size_multiple", 1)
    input_size = [padded_side(side, multiple) for side in batch.images.shape[2:]]
    stack = stack_of([first[name] for name in names], input_size, batch.infos[0]) if names else None
    moved = tuple(parts_of(predictor, batch, detections[:parts])) if bins and parts else ()
    return Observation(detections, stack, moved, tuple(readings), tuple(bins))


def automatic_points(boxes: np.ndarray, size: tuple[int, int]) -> dict[str, tuple[float, float]]:
    """Chooses points to look at: on a small object, on a large one, and on background.

    Args:
        boxes: (n, 4), half-open xyxy in pixels of the image.
        size: height and width of the image.

    Returns:
        x and y by what the point is on: the centers of the smallest and of the largest box (of the first one, if their
        areas differ by less than a factor of 2), and the point that is farthest from all boxes and from the border.
    """
    points = {}
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    chosen: dict[str, int] = {}
    if len(boxes) > 0:
        small, large = int(areas.argmin()), int(areas.argmax())
        differ = areas[large] >= 2 * areas[small]
        chosen = {"small object": small, "large object": large} if differ else {"object": 0}
    for name, index in chosen.items():
        x1, y1, x2, y2 = boxes[index].tolist()
        points[name] = ((x1 + x2) / 2, (y1 + y2) / 2)
    free = np.ones((size[0] + 2, size[1] + 2), np.uint8)
    free[[0, -1]] = free[:, [0, -1]] = 0
    for x1, y1, x2, y2 in boxes.tolist():
        free[max(int(y1), 0) + 1 : math.ceil(y2) + 1, max(int(x1), 0) + 1 : math.ceil(x2) + 1] = 0
    if free.any():
        distance = cv2.distanceTransform(free, cv2.DIST_L2, 5)
        row, column = np.unravel_index(distance.argmax(), distance.shape)
        points["background"] = (float(column) - 0.5, float(row) - 0.5)
    return points
