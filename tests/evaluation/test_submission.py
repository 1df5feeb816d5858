"""What the test-dev server would refuse or cut is refused here, and nothing is written."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dcn_det.data.index import DatasetIndex
from dcn_det.errors import UserError
from dcn_det.evaluation.submission import submission_name, write_submission
from dcn_det.structures import Category

EMPTY = torch.zeros(0)
INDEX = DatasetIndex(
    Path("list.json"), Path(), (Category(1, "person"), Category(90, "toothbrush")), torch.tensor([4, 9]),
    torch.tensor([[100, 200], [50, 60]]), EMPTY, EMPTY, EMPTY, EMPTY, EMPTY, EMPTY, "", annotated=False,
)  # fmt: skip
GOOD = {"image_id": 4, "category_id": 90, "bbox": [1.0, 2.0, 3.0, 4.0], "score": 0.5}


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([], "submission: there are no detections at all"),
        ([GOOD, GOOD | {"image_id": 5}], "submission: entry 1: image_id 5 is not in the ground truth"),
        ([GOOD | {"category_id": 2}], "submission: entry 0: category_id 2 is not in the ground truth"),
        ([GOOD | {"score": float("nan")}], "submission: entry 0: score must be a finite number"),
        ([GOOD, GOOD | {"score": 1.5}], "submission: entry 1: score 1.5 is outside [0, 1] (1 of 2 entries)"),
        ([GOOD | {"score": -0.1}], "submission: entry 0: score -0.1 is outside [0, 1]"),
        ([GOOD | {"bbox": [1, 2, -3, 4]}], "submission: entry 0: bbox [x, y, width, height] has a negative size"),
        ([GOOD, GOOD], "submission: entries that repeat another exactly, left out: 1 (entry 1 repeats entry 0)"),
        (
            [GOOD | {"score": i / 200} for i in range(101)],
            "submission: image 4 has 101 detections, the server takes 100; set test.max_detections=100",
        ),
    ],
)
def test_what_the_server_would_refuse_is_refused(tmp_path: Path, results: list[dict], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        write_submission(tmp_path, "name", results, INDEX)
    assert list(tmp_path.iterdir()) == []


def test_the_same_results_give_the_same_file(tmp_path: Path) -> None:
    first = write_submission(tmp_path, "a", [GOOD], INDEX).read_bytes()
    assert write_submission(tmp_path, "a", [GOOD], replace(INDEX, report="x")).read_bytes() == first
    assert [path.name for path in tmp_path.iterdir()] == ["detections_test-dev2017_a_results.zip"]


@pytest.mark.parametrize("text", ["", "a b", "a/b", "a_b"])
def test_names_are_plain(text: str) -> None:
    with pytest.raises(Exception, match="may hold only letters, digits, dots and hyphens"):
        submission_name(text)
