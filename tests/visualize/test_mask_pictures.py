"""Pictures of masks: colors, legend, confusion matrix."""

from __future__ import annotations

import cv2
import numpy as np
import torch

from dcn_det.categories import Category
from dcn_det.evaluation.segmentation import MaskEvaluator
from dcn_det.images import voc_palette
from dcn_det.visualize.masks import confusion_picture, draw_masks, iou_picture, legend, overlay

CATEGORIES = tuple(Category(label, name) for label, name in enumerate(("background", "cow", "sheep", "$x$")))


def test_classes_are_blended_and_others_left_alone() -> None:
    image = np.full((20, 30, 3), 100, np.uint8)
    labels = np.zeros((20, 30), np.uint8)
    labels[5:15, 5:15], labels[5:15, 20:28] = 1, 255
    drawn = overlay(image, labels, opacity=0.5)
    assert drawn[10, 10].tolist() == [114, 50, 50]  # (100 + 128) / 2 and (100 + 0) / 2
    assert drawn[5, 5].tolist() == [128, 0, 0]  # the border
    assert (drawn[labels != 1] == 100).all() and (image == 100).all()


def test_the_legend_names_what_occurs_largest_first() -> None:
    image = np.full((60, 40, 3), 90, np.uint8)
    labels = np.zeros((60, 40), np.uint8)
    labels[:30], labels[30:36] = 2, 255
    drawn = draw_masks(image, labels, CATEGORIES)
    assert drawn.shape[0] == 60 and drawn.shape[1] > 100
    colors = voc_palette()
    panel = drawn[:, 40:]
    tops = {name: np.flatnonzero((panel == colors[i]).all(axis=2).any(axis=1)) for i, name in ((0, "bg"), (2, "sheep"))}
    assert len(tops["sheep"]) and len(tops["bg"]) and tops["sheep"].min() < tops["bg"].min()
    assert not (panel == colors[1]).all(axis=2).any()


def test_a_low_legend_has_several_columns() -> None:
    entries = [(f"class {i}", (i, i, i)) for i in range(9)]
    assert legend(entries, 70).shape[1] >= 3 * legend(entries[:1], 70).shape[1]
    assert legend([], 50).shape[0] == 50 and legend(entries, 5).shape[0] == 5


def test_plots_are_images() -> None:
    evaluator = MaskEvaluator(CATEGORIES)
    truth = torch.randint(0, 3, (20, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    evaluator.add(0, (truth + 1).clamp(max=2), truth)
    metrics = evaluator.metrics()
    for content in (confusion_picture(metrics), iou_picture(metrics)):
        picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        assert picture is not None and picture.std() > 10
