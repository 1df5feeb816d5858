"""Ground truth that would silently give wrong numbers is refused."""

import json
import re
from pathlib import Path

import pytest

from dcn_det.errors import UserError
from dcn_det.evaluation.ground_truth import load_ground_truth
from tests.evaluation.helpers import evaluate, ground_truth, result
from tests.messages import refused


def changed(part: str, index: int, **changes: object) -> dict:
    data = ground_truth()
    data[part][index] |= changes
    return data


def with_twins() -> dict:
    data = ground_truth()
    return data | {"images": [*data["images"], data["images"][0]]}


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ([result()], "not COCO annotations: it is a list, expected an object; is it a results file?"),
        ("x", "not COCO annotations: it is a string"),
        ({"images": [], "categories": []}, "'images' is empty"),
        (ground_truth() | {"annotations": None}, "not COCO annotations: has no list 'annotations'"),
        (ground_truth() | {"images": {}}, "not COCO annotations: has no list 'images'"),
        (changed("images", 1, height=None), "image without a usable height: images[1].height is None"),
        (ground_truth() | {"images": [3]}, "image is not a JSON object: images[0] is 3"),
        (changed("images", 1, id="7"), "image without a usable id: images[1].id is '7'"),
        (changed("images", 1, id=2**63), "image without a usable id: images[1].id is 9223372036854775808"),
        (with_twins(), "image id used twice: 5"),
        (changed("categories", 0, name=3), "category without a usable name: categories[0].name is 3"),
        (changed("categories", 0, name="cat"), "category name used twice: 'cat'"),
        (changed("categories", 0, id=1), "category id used twice: 1"),
        (changed("annotations", 2, image_id=6), "annotation of an unknown image: annotations[2].image_id is 6"),
        (changed("annotations", 2, image_id="7"), "annotation without a usable image_id: annotations[2].image_id"),
        (
            changed("annotations", 0, category_id=2),
            "annotation of an unknown category: annotations[0].category_id is 2",
        ),
        (changed("annotations", 0, bbox=[1, 2]), "annotation without a usable bbox: annotations[0].bbox is [1, 2]"),
        (changed("annotations", 0, bbox=[1, 2, -1, 1]), "box of negative width or height: annotations[0] (id 1)"),
        (changed("annotations", 0, bbox=[1, 2, 1e10, 1]), "box with coordinates that are not finite or too large"),
        (changed("annotations", 0, bbox=[1, 2, float("nan"), 1]), "box with coordinates that are not finite"),
        (changed("annotations", 0, area="x"), "annotation without a usable area: annotations[0].area is 'x'"),
        (changed("annotations", 0, area=float("nan")), "annotation without a usable area: annotations[0].area is nan"),
        (changed("annotations", 0, iscrowd="0"), "annotation without a usable iscrowd: annotations[0].iscrowd is '0'"),
        (ground_truth() | {"annotations": []}, "no usable object: "),
        (
            ground_truth() | {"annotations": ground_truth()["annotations"][2:]},
            "no usable object: all 1 ",
        ),
    ],
)
def test_wrong_ground_truth_is_refused(tmp_path: Path, monkeypatch, data: object, expected: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("gt.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match=f"^gt.json: {re.escape(expected)}"):
        evaluate("gt.json", [result()])


def test_masks_need_ground_truth_with_masks() -> None:
    with refused("ground truth", "segmentation"):
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
