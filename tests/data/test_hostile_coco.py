"""One reader with one set of rules: what training, testing, evaluation or analysis refuses, ``check-dataset`` lists."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from dcn_det.config import Config
from dcn_det.data.build import build_dataset
from dcn_det.data.check import check_split, fixed_document
from dcn_det.data.formats import open_split
from dcn_det.data.formats.base import DataFormat
from dcn_det.data.formats.coco import read_coco
from dcn_det.errors import UserError
from dcn_det.evaluation.coco import evaluate
from dcn_det.evaluation.ground_truth import load_ground_truth
from tests.data.hostile import mutated

SIZE = (24, 32)
CASES = 500


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    for name in ("a.png", "b.png", "sub/c.png"):
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / "images" / name), np.zeros((*SIZE, 3), np.uint8))
    return folder


def document() -> dict[str, Any]:
    names = ("a.png", "b.png", "sub/c.png")
    boxes = ([1, 2, 10, 12.5], [0, 0, 32, 24], [4, 4, 8, 8], [2.5, 3, 20, 20])
    return {
        "info": {"year": 2020},
        "images": [
            {"id": i, "file_name": n, "height": SIZE[0], "width": SIZE[1]} for i, n in enumerate(names, start=4)
        ],
        "categories": [{"id": 2, "name": "cat", "supercategory": "animal"}, {"id": 7, "name": "dog"}],
        "annotations": [
            {"id": i, "image_id": 4 + i % 3, "category_id": (2, 7)[i % 2], "bbox": box, "area": 50.0, "iscrowd": i // 3}
            for i, box in enumerate(boxes)
        ],
    }


def refusal(action: Callable[[], object]) -> str | None:
    """Returns the message of a refusal, one line; other exceptions pass, and fail the test."""
    try:
        action()
    except UserError as error:
        assert "\n" not in str(error)
        return str(error)
    return None


def config(folder: Path) -> Config:
    split = {"images": "images", "annotations": "boxes.json"}
    data = {"root": str(folder), "train": split, "test": split, "empty_images": "keep"}
    return Config.model_validate({"data": data})


def refusals(folder: Path) -> Iterator[tuple[str, str]]:
    data, path = config(folder).data, folder / "boxes.json"
    actions: dict[str, Callable[[], object]] = {
        "training": lambda: build_dataset(data, "train"),
        "testing": lambda: build_dataset(data, "test"),
        "evaluation": lambda: evaluate(load_ground_truth(path), [], backend="pycocotools"),
        "evaluation of a config": lambda: open_split(data, "test").records(),
    }
    for what, action in actions.items():
        message = refusal(action)
        if message is not None:
            yield what, message


def is_listed(split: DataFormat) -> bool:
    """Whether ``check-dataset`` finds an error, or ends with one line."""
    goods: list[bool] = []
    message = refusal(lambda: goods.append(check_split(split, None).good))
    return message is not None or goods == [False]


def write_fixed(split: DataFormat, path: Path) -> None:
    path.write_text(json.dumps(fixed_document(split, check_split(split, None))))


@pytest.mark.parametrize("start", range(0, CASES, 100))
def test_what_others_refuse_the_check_lists(folder: Path, start: int) -> None:
    refused = 0
    for seed in range(start, start + 100):
        try:
            (folder / "boxes.json").write_text(json.dumps(mutated(document(), seed)))
        except (ValueError, UnicodeEncodeError):
            continue  # JSON cannot hold it
        found = dict(refusals(folder))
        split = open_split(config(folder).data, "train")
        assert is_listed(split) or not found, f"seed {seed}: {found}"
        refused += bool(found)
        if found and refusal(partial(write_fixed, split, folder / "fixed.json")) is None:
            read_coco(folder / "fixed.json", labelled=False)
    assert 20 < refused < 95


def test_the_unmutated_document_is_good(folder: Path) -> None:
    (folder / "boxes.json").write_text(json.dumps(document()))
    assert not dict(refusals(folder))
    report = check_split(open_split(config(folder).data, "train"), None)
    assert report.good and not report.findings.notes


EXPORTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "ids as text": lambda d: (
        [row.update(id=str(row["id"])) for row in d["images"]]
        + [row.update(image_id=str(row["image_id"])) for row in d["annotations"]]
    ),
    "ids as names": lambda d: (
        [row.update(id=f"img-{row['id']}") for row in d["images"]]
        + [row.update(image_id=f"img-{row['image_id']}") for row in d["annotations"]]
    ),
    "ids as decimals": lambda d: [row.update(id=float(row["id"])) for row in d["images"]],
    "category ids as text": lambda d: (
        [row.update(id=str(row["id"])) for row in d["categories"]]
        + [row.update(category_id=str(row["category_id"])) for row in d["annotations"]]
    ),
    "names as numbers": lambda d: [row.update(name=i) for i, row in enumerate(d["categories"])],
    "flags as text": lambda d: [row.update(iscrowd=str(row["iscrowd"])) for row in d["annotations"]],
    "sizes as text": lambda d: [row.update(width=str(row["width"])) for row in d["images"]],
    "boxes as text": lambda d: [row.update(bbox=[str(side) for side in row["bbox"]]) for row in d["annotations"]],
    "annotation ids that start anew": lambda d: [row.update(id=1) for row in d["annotations"]],
}


@pytest.mark.parametrize("export", EXPORTS)
def test_exports_are_repaired_without_a_loss(folder: Path, export: str) -> None:
    changed = document()
    EXPORTS[export](changed)
    (folder / "boxes.json").write_text(json.dumps(changed))
    split = open_split(config(folder).data, "train")
    report = check_split(split, None)
    assert report.good == (not dict(refusals(folder))) == (export == "annotation ids that start anew")
    (folder / "boxes.json").write_text(json.dumps(fixed_document(split, report)))
    assert not dict(refusals(folder))
    good, original = build_dataset(config(folder).data, "train").index, document()
    assert len(good) == 3 and len(good.labels) == len(original["annotations"])
    assert good.boxes.sum() == pytest.approx(sum(2 * b[0] + 2 * b[1] + b[2] + b[3] for b in (
        row["bbox"] for row in original["annotations"])))  # fmt: skip


@pytest.mark.parametrize("ident", [2**53, 2**53 + 1, 2**62, 20260102030405678, -5])
@pytest.mark.parametrize("backend", ["pycocotools", "hotcoco"])
def test_large_and_negative_ids_evaluate_exactly(ident: int, backend: Any) -> None:
    data = document()
    for offset, row in enumerate(data["images"]):
        row["id"] = ident + offset
    for row in data["annotations"]:
        row["image_id"] += ident - 4
    keys = ("image_id", "category_id", "bbox")
    results = [{**{key: row[key] for key in keys}, "score": 0.9} for row in data["annotations"] if not row["iscrowd"]]
    metrics = evaluate(load_ground_truth(data), results, backend=backend)
    assert metrics["AP"] == pytest.approx(1)
