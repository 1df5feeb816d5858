"""Ground truth that would silently give wrong numbers is refused."""

import json
import re
from pathlib import Path

import pytest

from dcn_det.errors import UserError
from dcn_det.evaluation.ground_truth import load_ground_truth
from tests.evaluation.helpers import evaluate, ground_truth, result


def changed(part: str, index: int, **changes: object) -> dict:
    data = ground_truth()
    data[part][index] |= changes
    return data


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ([result()], "gt.json: not COCO annotations: expected an object; this looks like a results file"),
        ("x", "gt.json: not COCO annotations: expected an object"),
        (
            {"images": [], "categories": []},
            "gt.json: not COCO annotations to evaluate with: has no list 'annotations'",
        ),
        (
            ground_truth() | {"images": {}},
            "gt.json: not COCO annotations to evaluate with: has no list 'images'",
        ),
        (changed("images", 1, height=None), "gt.json: image 1: 'height' is missing or not an integer"),
        (ground_truth() | {"images": [3]}, "gt.json: image 0: 'id' is missing or not an integer"),
        (changed("categories", 0, name=3), "gt.json: category 0: 'name' is missing or not a string"),
        (changed("categories", 0, name="cat"), "gt.json: two categories have the name 'cat'"),
        (changed("categories", 0, id=1), "gt.json: two categories have the id 1"),
        (changed("annotations", 2, image_id=6), "gt.json: annotation 2: image_id 6 is none of the images"),
        (
            changed("annotations", 2, image_id="7"),
            "gt.json: annotation 2: 'image_id' is missing or not an integer",
        ),
        (
            changed("annotations", 0, category_id=2),
            "gt.json: annotation 0: category_id 2 is none of the categories",
        ),
        (changed("annotations", 0, bbox=[1, 2]), "gt.json: annotation 0: bbox must be 4 finite numbers"),
        (
            changed("annotations", 0, bbox=[1, 2, -1, 1]),
            "gt.json: annotation 0: bbox [x, y, width, height] has a negative",
        ),
        (changed("annotations", 0, area="x"), "gt.json: annotation 0: area must be a finite number, got 'x'"),
        (
            changed("annotations", 0, iscrowd="x"),
            "gt.json: annotation 0: iscrowd must be a finite number, got 'x'",
        ),
        (ground_truth() | {"annotations": []}, "gt.json: has no object to find (crowds do not count)"),
        (
            ground_truth() | {"annotations": ground_truth()["annotations"][2:]},
            "gt.json: has no object to find (crowds do not count), so that no metric is defined",
        ),
    ],
)
def test_wrong_ground_truth_is_refused(tmp_path: Path, monkeypatch, data: object, expected: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("gt.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match=f"^{re.escape(expected)}"):
        evaluate("gt.json", [result()])


def test_masks_need_ground_truth_with_masks() -> None:
    with pytest.raises(
        UserError, match=r"^ground truth: has annotations without segmentation; evaluate boxes instead$"
    ):
        evaluate(ground_truth(), [], "segm")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"images": [}', "gt.json:1: not valid JSON: Expecting value (column 13)"),
        (b"[1,\n2,", "gt.json:2: not valid JSON: Expecting value"),
        (b"", "gt.json:1: not valid JSON: "),
        (b"\xff\xfe", "gt.json: not UTF-8 text: "),
        (b"[" * 100_000, "gt.json: nested too deeply"),
    ],
)
def test_what_is_no_json_is_refused(tmp_path: Path, monkeypatch, content: bytes, expected: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("gt.json").write_bytes(content)
    with pytest.raises(UserError, match=f"^{re.escape(expected)}"):
        load_ground_truth("gt.json")
