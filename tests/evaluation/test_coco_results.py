"""Results come from detections, go through a file, and are refused where they would silently give wrong numbers."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask

from dcn_det.errors import UserError
from dcn_det.evaluation.ground_truth import load_ground_truth
from dcn_det.evaluation.results import rle_length
from dcn_det.evaluation.truth import Truth
from dcn_det.files import write_json
from dcn_det.structures import Category, Detections
from tests.evaluation.helpers import evaluate, ground_truth, result, rle
from tests.messages import refused, says

# From detections to results


def test_detections_survive_the_way_through_a_file(tmp_path: Path) -> None:
    boxes = torch.rand(20, 4, generator=torch.Generator().manual_seed(0)) * 50
    boxes[:, 2:] += boxes[:, :2]
    categories = (Category(1, "cat"), Category(3, "dog"))
    results = Detections(boxes, torch.linspace(1, 0.1, 20), torch.arange(20) % 2, categories).to_coco(5)
    write_json(tmp_path / "new" / "results.json", results)
    table = Truth(load_ground_truth(ground_truth())).read(tmp_path / "new" / "results.json")
    assert table.boxes.tolist() == [entry["bbox"] for entry in results]
    assert table.scores.tolist() == [entry["score"] for entry in results]
    assert table.category_ids.tolist() == [entry["category_id"] for entry in results]
    assert set(table.image_ids.tolist()) == {5}


# Wrong results


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({"annotations": []}, "r.json: expected a list of results, got an object"),
        (
            ground_truth(),
            "r.json: expected a list of results, got an object; this looks like a ground-truth file",
        ),
        (3, "r.json: expected a list of results, got a number"),
        ([result(), 3], "r.json: entry 1: expected an object, got a number"),
        ([{"image_id": 5}], "r.json: entry 0: has no 'category_id'"),
        ([{k: v for k, v in result().items() if k != "score"}], "r.json: entry 0: has no 'score'"),
        ([result(), result(image_id=6)], "r.json: entry 1: image_id 6 "),
        ([result(image_id="5")], "r.json: entry 0: image_id '5' "),
        ([result(image_id=[5])], "r.json: entry 0: image_id [5] "),
        ([result(category_id=0)], "r.json: entry 0: category_id 0 "),
        ([result(score=math.nan)], "r.json: entry 0: score must be a finite number, got nan"),
        ([result(score=math.inf)], "r.json: entry 0: score must be a finite number, got inf"),
        ([result(score="0.5")], "r.json: entry 0: score must be a finite number, got '0.5'"),
        ([result(score=True)], "r.json: entry 0: score must be a finite number, got True"),
        (
            [result(bbox=[1, 2, 3])],
            "r.json: entry 0: bbox must be 4 finite numbers [x, y, width, height], got [1, 2, 3]",
        ),
        ([result(bbox=[1, 2, 3, None])], "r.json: entry 0: bbox must be 4 finite numbers"),
        ([result(bbox=[1, 2, math.inf, 3])], "r.json: entry 0: bbox must be 4 finite numbers"),
        ([result(bbox=[90, 80, -10, 5])], "has a negative size: [90, 80, -10, 5]; is it [x1, y1, x2, y2]?"),
    ],
)
def test_wrong_results_are_refused(tmp_path: Path, monkeypatch, entries: object, expected: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.json").write_text(json.dumps(entries))
    with pytest.raises(UserError) as caught:
        Truth(load_ground_truth(ground_truth())).read(Path("r.json"))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    if isinstance(entries, list):
        with pytest.raises(UserError, match=r"^results: entry "):
            evaluate(ground_truth(), entries)


def test_each_kind_of_problem_is_reported_once() -> None:
    entries = [result(), result(image_id=1), result(score=None), result(image_id=2), result(score=None)]
    with pytest.raises(UserError) as caught:
        evaluate(ground_truth(), entries)
    images, scores = str(caught.value).splitlines()
    assert says(images, "results: entry 1", "image_id 1", "2 of 5 entries")
    assert says(scores, "results: entry 2", "score", None, "2 of 5 entries")


@pytest.mark.parametrize(
    ("segmentation", "parts"),
    [
        ([[0, 0, 5, 0, 5, 5]], ["RLE", "size", "counts"]),
        ({"size": [100, 120], "counts": [5, 11995]}, ["RLE", "size", "counts"]),
        (rle(slice(0, 9), slice(0, 9), 120, 100), ["size", "[120, 100]", "[100, 120]"]),
        ({"size": None, "counts": "0"}, ["size", None, "[100, 120]"]),
        ({"size": [100, 120], "counts": "52203"}, ["RLE", "counts", "100 x 120"]),
        ({"size": [100, 120], "counts": ""}, ["RLE", "counts", "100 x 120"]),
    ],
)
def test_wrong_masks_are_refused(segmentation: object, parts: list[object]) -> None:
    data = ground_truth()
    for annotation in data["annotations"]:
        annotation["segmentation"] = rle(slice(0, 9), slice(0, 9))
    entries = [{"image_id": 5, "category_id": 1, "score": 0.5, "segmentation": segmentation}]
    with refused("results: entry 0", "segmentation", *parts):
        evaluate(data, entries, "segm")


def test_the_length_of_a_run_length_code_is_that_of_its_mask() -> None:
    random = np.random.default_rng(0)
    for _ in range(30):
        height, width = random.integers(1, 90, 2)
        pixels = np.asfortranarray(random.random((height, width)) < random.random(), np.uint8)
        counts = mask.encode(pixels)["counts"]
        assert rle_length(counts) == rle_length(counts.decode()) == height * width
        assert rle_length(counts[:-1]) != height * width
    for malformed in ("\x00", "~~~", "é", "O", "P"):
        assert rle_length(malformed) == -1


# Writing


def test_json_cannot_replace_a_folder(tmp_path: Path) -> None:
    (tmp_path / "x.json").mkdir()
    with pytest.raises(IsADirectoryError):
        write_json(tmp_path / "x.json", [])
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]
