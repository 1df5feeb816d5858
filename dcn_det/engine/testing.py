"""Runs a detector over a data set and measures what it finds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from dcn_det.data.index import DatasetIndex
from dcn_det.data.transforms import read_image
from dcn_det.engine.logging import progress_line
from dcn_det.evaluation.coco import to_coco_results
from dcn_det.inference.predictor import Predictor
from dcn_det.structures import Batch, Target
from dcn_det.visualize.boxes import draw_detections, draw_target, sheet

Say = Callable[[str], None]
MINIMUM_SCORE = 0.5
"""Detections below are not drawn."""


def detect_all(
    predictor: Predictor, batches: Iterable[Batch], total: int, say: Say, every: float = 15.0
) -> list[dict[str, Any]]:
    """Detections of every image as COCO results.

    Args:
        predictor: finds them.
        batches: every image once.
        total: how many images there are.
        say: called with a progress line now and then, and at the end.
        every: seconds between progress lines.
    """
    results: list[dict[str, Any]] = []
    started = spoken = time.monotonic()
    for done, (info, detections) in enumerate(predictor.stream(batches), start=1):
        results += to_coco_results(detections, info.image_id, predictor.categories)
        now = time.monotonic()
        if now - spoken >= every or done == total:
            say(progress_line(done, total, started, "test image"))
            spoken = now
    return results


def pictures(predictor: Predictor, index: DatasetIndex, count: int) -> list[tuple[str, np.ndarray]]:
    """Names and pictures (uint8 RGB) of the first few images: what was found on the left, ground truth on the right."""
    drawn = []
    for i in range(min(count, len(index))):
        path = index.folder / index.file_name(i)
        image = read_image(path)
        found = draw_detections(image, predictor(image), predictor.names, MINIMUM_SCORE)
        drawn.append((path.stem, sheet([found, draw_target(image, Target(*index.targets(i)), predictor.names)], 2)))
    return drawn


def say_on_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def say_sample_progress(done: int, total: int) -> None:
    """Tells now and then how writing the sample set advances."""
    if done % 500 == 0 or done == total:
        say_on_stderr(f"composing the sample set: image {done}/{total}")
