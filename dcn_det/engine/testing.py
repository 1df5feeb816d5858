"""Runs a detector over a data set and measures what it finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dcn_det.config import Config
from dcn_det.data.dataset import DetectionDataset
from dcn_det.data.index import DatasetIndex
from dcn_det.data.transforms import read_image
from dcn_det.distributed import Processes
from dcn_det.evaluation.metrics import Metrics
from dcn_det.evaluation.results import Result
from dcn_det.evaluation.truth import Truth
from dcn_det.inference.dataset import detect_dataset
from dcn_det.inference.predictor import Predictor
from dcn_det.progress import Say
from dcn_det.structures import Target
from dcn_det.visualize.boxes import draw_detections, draw_target, sheet

MINIMUM_SCORE = 0.5
"""Detections below are not drawn."""


def run_test(
    predictor: Predictor,
    dataset: DetectionDataset,
    config: Config,
    folder: Path,
    say: Say,
    processes: Processes | None = None,
) -> tuple[list[Result], Metrics | None]:
    """Finds the objects of a data set and says how good that is.

    Args:
        predictor: finds them.
        dataset: the images.
        config: how to load and how to evaluate.
        folder, say, processes: see :func:`dcn_det.inference.dataset.detect_dataset`.

    Returns:
        COCO results, and their metrics where the data set is annotated. Of several processes only the main one gets
        them, the others nothing.
    """
    results = detect_dataset(predictor, dataset, config.data, config.test.batch_size, folder, say, processes)
    if (processes is not None and not processes.main) or not dataset.index.annotated:
        return results, None
    return results, Truth.of_config(config).measure(results, config.evaluation)


def pictures(predictor: Predictor, index: DatasetIndex, count: int) -> list[tuple[str, np.ndarray]]:
    """Names and pictures (uint8 RGB) of the first few images: what was found on the left, ground truth on the right."""
    drawn = []
    for i in range(min(count, len(index))):
        path = index.folder / index.file_name(i)
        image = read_image(path)
        found = draw_detections(image, predictor(image), predictor.names, MINIMUM_SCORE)
        drawn.append((path.stem, sheet([found, draw_target(image, Target(*index.targets(i)), predictor.names)], 2)))
    return drawn
