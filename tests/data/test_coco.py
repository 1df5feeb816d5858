import copy
import gc
import json
import pickle
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from dcn_det.data.index import DatasetIndex
from dcn_det.errors import UserError
from dcn_det.structures import Category
from tests.data.helpers import load_coco

Document = dict[str, Any]


def annotation(image: int, bbox: list[float], category: int = 3, **more: Any) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": bbox, "iscrowd": 0, **more}


DOCUMENT: Document = {
    # Neither images nor categories are in the order of their ids.
    "images": [
        {"id": 20, "file_name": "b.png", "width": 30, "height": 40},
        {"id": 10, "file_name": "sub/a.png", "width": 50, "height": 20},
        {"id": 30, "file_name": "\u00e9.png", "width": 16, "height": 16},
    ],
    "annotations": [
        annotation(20, [1.5, 2, 3, 4.25], category=7),
        annotation(10, [0, 0, 50, 20]),
        annotation(20, [5, 6, 7, 8]),
        annotation(20, [0, 0, 30, 30], iscrowd=1),
    ],
    "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
}

Write = Callable[..., tuple[Path, Path]]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes DOCUMENT, changed as wanted, and its images; returns the paths of both."""

    def change_and_write(change: Callable[[Document], Any] = lambda document: None) -> tuple[Path, Path]:
        document = copy.deepcopy(DOCUMENT)
        for image in document["images"]:
            path = tmp_path / "images" / image["file_name"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(cv2.imencode(".png", np.zeros((image["height"], image["width"], 3), np.uint8))[1])
        change(document)
        (tmp_path / "boxes.json").write_text(json.dumps(document))
        return tmp_path / "boxes.json", tmp_path / "images"

    return change_and_write


def add(*annotations: dict[str, Any]) -> Callable[[Document], None]:
    return lambda document: document["annotations"].extend(annotations)


def check_content(index: DatasetIndex) -> None:
    assert index.image_ids.tolist() == [10, 20, 30]
    assert [index.file_name(i) for i in range(3)] == ["sub/a.png", "b.png", "\u00e9.png"]
    assert [index.size(i) for i in range(3)] == [(20, 50), (40, 30), (16, 16)]
    assert index.landscape.tolist() == [True, False, True]
    assert index.categories == (Category(3, "cat"), Category(7, "dog"))
    boxes, labels = index.targets(1)
    assert boxes.tolist() == [[1.5, 2, 4.5, 6.25], [5, 6, 12, 14]] and boxes.dtype == torch.float32
    assert labels.tolist() == [1, 0] and labels.dtype == torch.int64
    assert index.targets(0)[0].tolist() == [[0, 0, 50, 20]]
    assert index.targets(2)[0].shape == (0, 4)


def test_reads_images_boxes_and_labels(write: Write) -> None:
    index = load_coco(*write())
    check_content(index)
    assert index.crowd.tolist() == [False, False, False, True]
    assert re.search(
        r"boxes\.json: 3 of 3 images, 4 boxes, 2 classes; crowd boxes, not trained on: 1; "
        r"images without objects, kept: 1$",
        index.report,
    )


def test_an_index_is_a_few_tensors_that_can_be_sent_to_a_worker(write: Write) -> None:
    index = load_coco(*write())
    check_content(pickle.loads(pickle.dumps(index)))
    index.targets(0)  # reading keeps nothing
    sent = pickle.loads(pickle.dumps(index))
    assert set(vars(sent)) == {field.name for field in fields(DatasetIndex)} == set(vars(index))
    for name in vars(sent):
        assert not isinstance(getattr(index, name), (list, dict))


def test_iscrowd_area_and_segmentation_may_be_absent(write: Write) -> None:
    index = load_coco(*write(lambda d: [row.pop("iscrowd") for row in d["annotations"]]))
    assert not index.crowd.any()


def test_empty_images_can_be_skipped(write: Write) -> None:
    paths = write(add(annotation(30, [0, 0, 5, 5], iscrowd=1)))
    index = load_coco(*paths, empty_images="skip")
    assert index.image_ids.tolist() == [10, 20]
    assert len(index.boxes) == 4 == index.offsets[-1]
    assert "2 of 3 images" in index.report and "images with crowds only, left out: 1" in index.report


@pytest.mark.parametrize(
    "bbox",
    [
        [5, 5, 0, 5],
        [5, 5, 1e-3, 5],  # none once scaled in float32
        [16, 0, 5, 5],  # beyond the image
        [-5, 0, 5, 5],
    ],
)
def test_boxes_without_area_are_left_out_and_counted(write: Write, bbox: list[float]) -> None:
    index = load_coco(*write(add(annotation(30, bbox))), empty_images="skip")
    assert index.image_ids.tolist() == [10, 20]
    assert "boxes without area, left out: 1" in index.report and "clipped" not in index.report


def test_boxes_are_clipped_and_counted(write: Write) -> None:
    outside = annotation(30, [-2, 3, 100, 4])
    rounding = annotation(30, [0, 0, 16.004, 16])
    index = load_coco(*write(add(outside, rounding)))
    assert index.targets(2)[0].tolist() == [[0, 3, 16, 7], [0, 0, 16, 16]]
    assert "boxes clipped to their image: 1" in index.report


def test_missing_images_stop_by_default(write: Write) -> None:
    annotations, images = write()
    (images / "sub" / "a.png").unlink()
    (images / "b.png").unlink()
    with pytest.raises(UserError, match=r"2 of 3 images are missing from .*: b\.png, sub/a\.png; .*bad_images=skip"):
        load_coco(annotations, images)


def test_missing_and_unreadable_images_can_be_skipped(write: Write) -> None:
    annotations, images = write()
    (images / "sub" / "a.png").unlink()
    (images / "sub").rmdir()
    (images / "\u00e9.png").write_bytes(b"no image")
    index = load_coco(annotations, images, bad_images="skip")
    assert index.image_ids.tolist() == [20]
    assert index.targets(0)[1].tolist() == [1, 0]
    assert "1 of 3 images, 3 boxes" in index.report
    assert "images missing or unreadable, left out: 2" in index.report


def test_no_image_left_is_an_error(write: Write) -> None:
    paths = write(lambda d: d.update(annotations=[annotation(10, [0, 0, 0, 5])]))
    with pytest.raises(UserError, match=r"left of 3 .*2 without objects, 1 with boxes without area only \(empty_im"):
        load_coco(*paths, empty_images="skip")
    assert len(load_coco(*paths)) == 3


def test_an_unlabelled_list_is_accepted_only_when_asked_for(write: Write) -> None:
    paths = write(lambda d: d.pop("annotations"))
    assert load_coco(*paths, labelled=False).boxes.shape == (0, 4)
    with pytest.raises(UserError, match="has no list 'annotations'; its keys are"):
        load_coco(*paths)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("images"), "has no list 'images'; its keys are 'annotations', 'categories'$"),
        (lambda d: d.pop("categories"), "has no list 'categories'"),
        (lambda d: d["images"].clear(), "'images' is empty"),
        (lambda d: d.update(images={}), "has no list 'images'"),
        (lambda d: d["images"][1].pop("width"), r"images\[1\]\.width is missing"),
        (lambda d: d["images"][0].update(height=0), r"images\[0\]\.height is 0, expected an integer from 1"),
        (lambda d: d["images"][0].update(id="x"), r"images\[0\]\.id is 'x'"),
        (lambda d: d["images"][2].update(file_name=None), r"images\[2\]\.file_name is None"),
        (lambda d: d["images"][2].update(id=10), r"image id used twice: 10 \("),
        (lambda d: d["annotations"][1].pop("bbox"), r"annotations\[1\]\.bbox is missing"),
        (lambda d: d["annotations"][2].update(bbox=[1, 2, 3]), r"annotations\[2\]\.bbox is \[1, 2, 3\]"),
        (lambda d: d["annotations"][2].update(bbox=["1", 2, 3, 4]), r"annotations\[2\]\.bbox is"),
        (
            add(*(annotation(i, [0, 0, 1, 1]) for i in range(40, 47))),
            r"unknown image: annotations\[4\]\.image_id is 40, .* is 42 and 4 more",
        ),
        (
            add(annotation(10, [0, 0, 1, 1], category=4)),
            r"unknown category: annotations\[4\]\.category_id is 4",
        ),
        (lambda d: d["categories"][0].update(id=3), r"category id used twice: 3 "),
        (lambda d: d["categories"][0].update(name="cat"), r"category name used twice: 'cat'$"),
    ],
)
def test_malformed_files_are_errors_that_say_where(
    write: Write, change: Callable[[Document], Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as error:
        load_coco(*write(change))
    assert "boxes.json" in str(error.value) and "\n" not in str(error.value)


def test_files_that_are_not_annotations(write: Write, tmp_path: Path) -> None:
    annotations, images = write()
    with pytest.raises(UserError, match=r"none\.json"):
        load_coco(tmp_path / "none.json", images)
    with pytest.raises(UserError, match=r"folder .*nowhere"):
        load_coco(annotations, tmp_path / "nowhere")
    annotations.write_text('{"images": [')
    with pytest.raises(UserError, match=r"boxes\.json:1: not valid JSON"):
        load_coco(annotations, images)
    assert gc.isenabled()
    annotations.write_text("[]")
    with pytest.raises(UserError, match=r"boxes\.json: not COCO annotations: it is a list"):
        load_coco(annotations, images)


@pytest.mark.parametrize("classes", [["cat", "dog"], ["dog", "cat"], ["dog"]])
def test_classes_select_and_order_the_labels(write: Write, classes: list[str]) -> None:
    index = load_coco(*write(), classes=classes)
    assert [category.name for category in index.categories] == classes
    assert [category.id for category in index.categories] == [{"cat": 3, "dog": 7}[name] for name in classes]
    _, labels = index.targets(1)
    assert [classes[label] for label in labels] == [name for name in ("dog", "cat") if name in classes]
    assert ("objects of other classes, left out: 3" in index.report) == (classes == ["dog"])


@pytest.mark.parametrize(("classes", "near"), [(["cat", "dig"], "dig; did you mean 'dog'"), (["cat", "cow"], "cow")])
def test_classes_must_be_in_the_file(write: Write, classes: list[str], near: str) -> None:
    with pytest.raises(UserError, match=f"data.classes: .*: {near}"):
        load_coco(*write(), classes=classes)


@pytest.mark.shared
def test_real_coco_photos(shared: Path) -> None:
    """Counts of the training subset, checked against pycocotools' reading of the same file."""
    from pycocotools.coco import COCO

    root = shared / "data" / "coco_subset"
    path = root / "annotations" / "instances_train2017_subset.json"
    index = load_coco(path, root / "train2017")
    truth = COCO(str(path))
    assert index.image_ids.tolist() == sorted(truth.imgs)
    assert [c.id for c in index.categories] == sorted(truth.cats) and len(index.categories) == 80
    for i, image_id in enumerate(index.image_ids.tolist()):
        expected = truth.loadAnns(truth.getAnnIds(image_id, iscrowd=False))
        boxes, labels = index.targets(i)
        widths_heights = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1)
        wanted = torch.tensor([a["bbox"] for a in expected], dtype=torch.float32).reshape(-1, 4)
        torch.testing.assert_close(widths_heights, wanted, rtol=0, atol=1e-3)
        assert [index.categories[k].id for k in labels.tolist()] == [a["category_id"] for a in expected]
    assert index.report.endswith(
        "288 of 288 images, 2383 boxes, 80 classes; crowd boxes, not trained on: 24; images without objects, kept: 2"
    )
    assert len(load_coco(path, root / "train2017", empty_images="skip", bad_images="skip")) == 286
