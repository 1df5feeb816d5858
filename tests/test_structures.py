"""Counting, selecting, writing and drawing detections."""

import json
import math
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dcn_det.errors import UserError
from dcn_det.structures import Category, Detection, Detections

CATEGORIES = (Category(18, "dog"), Category(1, "person"))


def three() -> Detections:
    boxes = torch.tensor([[1.0, 2.0, 11.0, 22.0], [0.0, 0.0, 0.5, 1.0], [5.0, 5.0, 9.0, 8.0]])
    return Detections(boxes, torch.tensor([0.75, 0.5, 0.25]), torch.tensor([1, 0, 1]), CATEGORIES)


def test_detections_count_iterate_and_name_their_classes() -> None:
    detections = three()
    assert len(detections) == 3
    assert detections.names == ["person", "dog", "person"]
    assert list(detections)[1] == Detection((0.0, 0.0, 0.5, 1.0), 0.5, 0, "dog")
    assert Detections(detections.boxes, detections.scores, detections.labels).names == ["1", "0", "1"]


@pytest.mark.parametrize(
    "which",
    [slice(0, 3, 2), [0, 2], [True, False, True], np.array([True, False, True]), torch.tensor([0, 2])],
)
def test_masks_slices_and_positions_select(which: Any) -> None:
    chosen = three()[which]
    assert isinstance(chosen, Detections)
    assert chosen.scores.tolist() == [0.75, 0.25] and chosen.names == ["person", "person"]
    assert chosen.boxes.shape == (2, 4)


def test_a_single_position_gives_one_detection() -> None:
    assert three()[-1] == list(three())[2]
    assert len(three()[[]]) == 0
    with pytest.raises(IndexError, match="3"):
        three()[3]


def test_above_is_exclusive() -> None:
    assert three().above(0.5).scores.tolist() == [0.75]
    assert len(three().above(0.9)) == 0


def test_coco_results_have_half_open_sizes_and_the_files_ids() -> None:
    assert three()[:2].to_coco(42) == [
        {"image_id": 42, "category_id": 1, "bbox": [1.0, 2.0, 10.0, 20.0], "score": 0.75},
        {"image_id": 42, "category_id": 18, "bbox": [0.0, 0.0, 0.5, 1.0], "score": 0.5},
    ]
    assert three()[:0].to_coco(42) == []
    with pytest.raises(ValueError, match="categories"):
        Detections(torch.ones(1, 4), torch.ones(1), torch.zeros(1, dtype=torch.int64)).to_coco(42)


@pytest.mark.parametrize("field", ["boxes", "scores"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_coco_results_are_finite(field: str, value: float) -> None:
    detections = three()
    getattr(detections, field)[1] = value
    with pytest.raises(UserError, match="42"):
        detections.to_coco(42)


def test_saved_detections_are_plain_json(tmp_path: Path) -> None:
    three().save(tmp_path / "new" / "a.json")
    records = json.loads((tmp_path / "new" / "a.json").read_text())
    assert records[0] == {"box": [1.0, 2.0, 11.0, 22.0], "score": 0.75, "class": "person"}
    assert len(records) == 3


def test_drawing_shows_what_was_found_and_leaves_the_image_alone() -> None:
    image = np.zeros((40, 50, 3), np.uint8)
    picture = three().draw(torch.from_numpy(image).permute(2, 0, 1))
    assert picture.shape == image.shape and picture[21, 5].any() and not image.any()
    assert not three()[:0].draw(image).any()
    assert Detections(torch.ones(1, 4), torch.ones(1), torch.tensor([4])).draw(image).any()


def test_supervision_gets_arrays_and_its_absence_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match="pip install supervision"):
        three().to_supervision()
    fake = types.SimpleNamespace(Detections=lambda **columns: columns)
    monkeypatch.setitem(sys.modules, "supervision", fake)
    columns = three().to_supervision()
    assert columns["xyxy"].shape == (3, 4) and columns["class_id"].tolist() == [1, 0, 1]
    assert columns["data"]["class_name"].tolist() == ["person", "dog", "person"]
