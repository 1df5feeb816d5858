"""Iterative box averaging compared with a reference that loops over images, boxes and classes."""

import numpy as np
import pytest
import torch

from dcn_det.inference.box_average import BoxAverage, iterate
from dcn_det.inference.predictor import Predictor, View
from dcn_det.models.boxes import iou_matrix
from dcn_det.models.detector import TwoStageDetector
from dcn_det.models.postprocess import PostProcess
from dcn_det.structures import Batch, Detections, ImageInfo
from tests.inference.detectors import CATEGORIES, tiny_detector


def batch(*sizes: tuple[int, int]) -> Batch:
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (len(sizes), 3, 112, 128), dtype=torch.uint8, generator=generator)
    return Batch(images, [ImageInfo(i, "", *size, *size) for i, size in enumerate(sizes)])


def slow(model: TwoStageDetector, images: Batch, settings: BoxAverage) -> list[list[tuple[float, int, list[float]]]]:
    """Returns (score, label, box) of every pass; every box passes through the head alone."""
    features = model.extract(images)
    proposals = model.propose(features, images.infos)
    none = [torch.zeros(0, 4)] * len(images)
    result = []
    for index in range(len(images)):

        def head(boxes: torch.Tensor, index: int = index) -> tuple[torch.Tensor, torch.Tensor]:
            given = [*none[:index], boxes, *none[index + 1 :]]
            return model.head.predict(features.head, given, images.infos)[index]

        latest = []
        scores, boxes = head(proposals[index].boxes)
        for row in range(len(scores)):
            for label in range(3):
                if scores[row, label] > model.score_threshold:
                    latest.append((float(scores[row, label]), label, boxes[row, label]))
        every = list(latest)
        for _ in range(settings.iterations - 1):
            seeds: list[tuple[float, int, torch.Tensor]] = []
            for one in sorted(latest, key=lambda each: -each[0]):
                if any(s[1] == one[1] and iou_matrix(s[2][None], one[2][None]) > settings.prune_iou for s in seeds):
                    continue
                seeds.append(one)
            latest = []
            for _, label, box in seeds[: settings.max_boxes]:
                scores, boxes = head(box[None])
                if scores[0, label] > model.score_threshold:
                    latest.append((float(scores[0, label]), label, boxes[0, label]))
            every += latest
        result.append([(score, label, box.tolist()) for score, label, box in every])
    return result


@pytest.mark.parametrize("class_agnostic", [False, True])
@pytest.mark.parametrize(("iterations", "prune_iou", "max_boxes"), [(1, 0.9, 1000), (2, 0.9, 1000), (3, 0.7, 25)])
@torch.inference_mode()
def test_passes_equal_a_slow_reference(class_agnostic: bool, iterations: int, prune_iou: float, max_boxes: int) -> None:
    model = tiny_detector(class_agnostic, score_threshold=0.02)
    settings = BoxAverage(iterations, prune_iou, max_boxes)
    images = batch((112, 128), (96, 80))
    found = iterate(model, images, settings)
    expected = slow(model, images, settings)
    assert sum(map(len, expected)) > 20, "the case is not trivial"
    for one, reference in zip(found, expected):
        assert len(one) == len(reference)
        rows = sorted(zip(one.scores.tolist(), one.labels.tolist(), one.boxes.tolist()))
        for (score, label, box), (their_score, their_label, their_box) in zip(rows, sorted(reference)):
            assert label == their_label
            assert score == pytest.approx(their_score, abs=1e-5)
            assert box == pytest.approx(their_box, abs=2e-3)


@torch.inference_mode()
def test_one_pass_gives_the_detectors_own_candidates() -> None:
    model, images = tiny_detector(), batch((112, 128))
    ours, theirs = iterate(model, images, BoxAverage(1))[0], model.candidates(images)[0]
    assert all(torch.equal(getattr(ours, name), getattr(theirs, name)) for name in ("boxes", "scores", "labels"))


@torch.inference_mode()
def test_an_image_without_confident_boxes_passes_through() -> None:
    model = tiny_detector(score_threshold=1.0)
    assert [len(found) for found in iterate(model, batch((112, 128), (96, 80)), BoxAverage(3))] == [0, 0]


def test_the_predictor_unites_passes_and_views_and_votes_once() -> None:
    model = tiny_detector()
    image = np.random.default_rng(0).integers(0, 256, (100, 130, 3), dtype=np.uint8)
    views = [View(64, 100), View(96, 112, True)]
    average = BoxAverage(2)
    result = Predictor(model, CATEGORIES, views, torch.device("cpu"), PostProcess(0.2, vote_iou=0.5), average)(image)
    keep_all = PostProcess(0.2, nms_iou=1.0, max_detections=10_000)
    apart = [Predictor(model, CATEGORIES, [view], torch.device("cpu"), keep_all, average)(image) for view in views]
    expected = PostProcess(0.2, vote_iou=0.5)(Detections.join(apart))
    assert torch.equal(result.scores, expected.scores)
    torch.testing.assert_close(result.boxes, expected.boxes)
