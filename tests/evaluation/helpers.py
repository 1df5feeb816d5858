"""A COCO ground truth of two images, results for it, and metrics of such data."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from pycocotools import mask

from dcn_det.evaluation import coco
from dcn_det.evaluation.ground_truth import load_ground_truth
from dcn_det.evaluation.metrics import Metrics
from dcn_det.evaluation.results import ResultTable


def ground_truth() -> dict:
    """Two images of 100 x 120; in the first a large cat and a small dog, in the second a crowd of dogs."""
    return {
        "images": [{"id": 5, "height": 100, "width": 120}, {"id": 7, "height": 100, "width": 120}],
        "categories": [{"id": 3, "name": "dog"}, {"id": 1, "name": "cat"}, {"id": 9, "name": "owl"}],
        "annotations": [
            {"id": 1, "image_id": 5, "category_id": 1, "bbox": [0, 0, 100, 100], "area": 10000, "iscrowd": 0},
            {"id": 2, "image_id": 5, "category_id": 3, "bbox": [10, 10, 20, 20], "area": 400, "iscrowd": 0},
            {"id": 3, "image_id": 7, "category_id": 3, "bbox": [0, 0, 60, 60], "area": 3600, "iscrowd": 1},
        ],
    }


def result(**changes: object) -> dict:
    return {"image_id": 5, "category_id": 1, "bbox": [0, 0, 100, 100], "score": 0.5} | changes


def rle(rows: slice, columns: slice, height: int = 100, width: int = 120) -> dict:
    pixels = np.zeros((height, width), np.uint8, order="F")
    pixels[rows, columns] = 1
    encoded = mask.encode(pixels)
    return {"size": [height, width], "counts": encoded["counts"].decode()}


def evaluate(truth: Mapping | str | Path, results: list[dict] | ResultTable, *args, **options) -> Metrics:
    return coco.evaluate(load_ground_truth(truth), results, *args, **options)
