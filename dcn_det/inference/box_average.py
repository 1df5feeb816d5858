"""Iterative bounding-box average: the head scores and refines its own boxes again.

Source: Gidaris and Komodakis, "Object detection via a multi-region and semantic segmentation-aware CNN model", ICCV
2015, section 5, as used by Dai et al. (ICCV 2017, Table 5); thresholds from the authors' code of the former.
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
    """Settings of iterative box averaging.

    Attributes:
        iterations: passes of the head, at least 1.
        prune_iou: of boxes of a class that overlap by more, only the best is refined again.
        max_boxes: maximum number of boxes per image, by score, that are refined again.
    """

    iterations: int = 2
    prune_iou: float = 0.95
    max_boxes: int = 1000


@torch.no_grad()
def iterate(model: TwoStageDetector, batch: Batch, settings: BoxAverage) -> list[Detections]:
    """Returns the candidates of all passes of the head over the same feature maps.

    The first pass refines the proposals. Each later pass scores and refines the boxes of the previous one again, each
    for its own class. Boxes that are shared by all classes are pooled once.

    Args:
        model: in evaluation mode; its ``score_threshold`` applies to every pass.
        batch: on the model's device.
        settings: see :class:`BoxAverage`.

    Returns:
        For each image, the candidates of all passes in order, in pixels of the network's input.
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
