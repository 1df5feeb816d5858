"""Iterative bounding-box average: the head scores and regresses its own boxes again.

Source: Gidaris and Komodakis, "Object detection via a multi-region and semantic segmentation-aware CNN model", ICCV
2015, section 5, which Dai et al. (ICCV 2017, Table 5) take over; thresholds are those of its authors' code.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dcn_det.models.detector import TwoStageDetector
from dcn_det.models.postprocess import confident
from dcn_det.ops import batched_nms
from dcn_det.structures import Batch, Detections


@dataclass(frozen=True, slots=True)
class BoxAverage:
    """How often the head runs, and on which of its boxes.

    Attributes:
        iterations: passes of the head, at least 1.
        prune_iou: of boxes of a class that overlap by more, only the best goes through the head again.
        max_boxes: at most so many do, the best of the image.
    """

    iterations: int = 2
    prune_iou: float = 0.95
    max_boxes: int = 1000


@torch.no_grad()
def iterate(model: TwoStageDetector, batch: Batch, settings: BoxAverage) -> list[Detections]:
    """Candidates of all passes of the head over the same feature maps.

    The first pass takes the proposals. Each later one takes the boxes that the one before gave, each for the class
    it was regressed for, and scores and regresses it for that class again. Detectors with one box for all classes
    pool it once.

    Args:
        model: in evaluation mode; its ``score_threshold`` holds in every pass.
        batch: on the model's device.
        settings: see there.

    Returns:
        For each image the candidates of all passes, the first pass first, in pixels of the network's input.
    """
    features = model.extract(batch)
    boxes = [proposals.boxes for proposals in model.propose(features, batch.infos)]
    latest = [
        confident(scores, refined, model.score_threshold)
        for scores, refined in model.head.predict(features.head, boxes, batch.infos)
    ]
    passes = [latest]
    for _ in range(settings.iterations - 1):
        seeds = [_prune(candidates, settings) for candidates in latest]
        different = [torch.unique(seed.boxes, dim=0, return_inverse=True) for seed in seeds]
        results = model.head.predict(features.head, [boxes for boxes, _ in different], batch.infos)
        latest = []
        for seed, (_, place), (scores, refined) in zip(seeds, different, results):
            again = Detections(refined[place, seed.labels], scores[place, seed.labels], seed.labels)
            latest.append(again[again.scores > model.score_threshold])
        passes.append(latest)
    return [Detections.join(found) for found in zip(*passes)]


def _prune(candidates: Detections, settings: BoxAverage) -> Detections:
    keep = batched_nms(
        candidates.boxes, candidates.scores, candidates.labels, settings.prune_iou, max_keep=settings.max_boxes
    )
    return candidates[keep]
