"""What the test-dev server would refuse or cut is refused here, and nothing is written."""

import argparse
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dcn_det.data.index import DatasetIndex
from dcn_det.evaluation.submission import submission_name, write_submission
from dcn_det.structures import Category
from tests.messages import refused

EMPTY = torch.zeros(0)
INDEX = DatasetIndex(
    Path("list.json"), Path(), (Category(1, "person"), Category(90, "toothbrush")), torch.tensor([4, 9]),
    torch.tensor([[100, 200], [50, 60]]), EMPTY, EMPTY, EMPTY, EMPTY, EMPTY, EMPTY, "", annotated=False,
)  # fmt: skip
GOOD = {"image_id": 4, "category_id": 90, "bbox": [1.0, 2.0, 3.0, 4.0], "score": 0.5}


@pytest.mark.parametrize(
    ("results", "parts"),
    [
        ([], ["no detections"]),
        ([GOOD, GOOD | {"image_id": 5}], ["entry 1", "image_id 5"]),
        ([GOOD | {"category_id": 2}], ["entry 0", "category_id 2"]),
        ([GOOD | {"score": float("nan")}], ["entry 0", "score", "nan"]),
        ([GOOD, GOOD | {"score": 1.5}], ["entry 1", "score 1.5", "[0, 1]", "1 of 2 entries"]),
        ([GOOD | {"score": -0.1}], ["entry 0", "score -0.1", "[0, 1]"]),
        ([GOOD | {"bbox": [1, 2, -3, 4]}], ["entry 0", "bbox", "[1, 2, -3, 4]"]),
        ([GOOD, GOOD], ["entry 1", "entry 0"]),
        ([GOOD | {"score": i / 200} for i in range(101)], ["image 4", 101, "test.max_detections=100"]),
    ],
)
def test_what_the_server_would_refuse_is_refused(tmp_path: Path, results: list[dict], parts: list[object]) -> None:
    with refused("submission", *parts):
        write_submission(tmp_path, "name", results, INDEX)
    assert list(tmp_path.iterdir()) == []


def test_the_same_results_give_the_same_file(tmp_path: Path) -> None:
    first = write_submission(tmp_path, "a", [GOOD], INDEX).read_bytes()
    assert write_submission(tmp_path, "a", [GOOD], replace(INDEX, report="x")).read_bytes() == first
    assert [path.name for path in tmp_path.iterdir()] == ["detections_test-dev2017_a_results.zip"]


@pytest.mark.parametrize("text", ["", "a b", "a/b", "a_b"])
def test_names_are_plain(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=re.escape(repr(text))):
        submission_name(text)
