"""YOLO's text format: places of labels and names, boxes and polygons, and what cannot be used."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from dcn_det.cli import check_dataset
from dcn_det.config import load_config
from dcn_det.data.build import build_dataset
from dcn_det.data.findings import Findings
from dcn_det.data.formats import open_split
from dcn_det.data.formats.yolo import label_path, list_images, read_names
from dcn_det.data.records import Records
from tests.messages import refused, says


def photo(path: Path, size: tuple[int, int] = (40, 80)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((*size, 3), 90, np.uint8))
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two splits in Ultralytics' layout, with a name that has spaces and letters outside ASCII."""
    (tmp_path / "data.yaml").write_text("path: .\ntrain: images/train\nval: images/val\nnames: {0: cat, 1: dog}\n")
    for name, text in {
        "train/B\u00f6se Katze 1.jpg": "1 0.5 0.5 0.25 0.5\n\n0 0.1 0.1 0.2 0.2\n",
        "train/deep/er/b.png": "0 0.25 0.25 0.75 0.25 0.5 0.75\n",
        "train/empty.jpg": "",
        "train/without.jpg": None,
        "val/c.jpg": "1 0.5 0.5 1 1\n",
    }.items():
        image = photo(tmp_path / "images" / name)
        if text is not None:
            labels = tmp_path / "labels" / Path(name).with_suffix(".txt")
            labels.parent.mkdir(parents=True, exist_ok=True)
            labels.write_text(text)
        assert image.is_file()
    return tmp_path


def read(root: Path, split: str = "train", *overrides: str) -> tuple[Records, Findings]:
    (root / "config.yaml").write_text(f"data: {{kind: yolo, root: {json.dumps(str(root))}}}\n")
    opened = open_split(load_config(root / "config.yaml", *overrides).data, split)  # type: ignore[arg-type]
    findings = Findings(opened.source)
    return opened.read(findings), findings


def test_boxes_and_polygons_in_pixels(root: Path) -> None:
    records, findings = read(root)
    assert records.names == [
        "images/train/B\u00f6se Katze 1.jpg",
        "images/train/deep/er/b.png",
        "images/train/empty.jpg",
        "images/train/without.jpg",
    ]
    assert [each.name for each in records.categories] == ["cat", "dog"] and records.labels.tolist() == [1, 0, 0]
    assert records.owners.tolist() == [0, 0, 1] and records.sizes.tolist() == [[40, 80]] * 4
    expected = [[30, 10, 50, 30], [0, 0, 16, 8], [20, 10, 60, 30]]
    np.testing.assert_allclose(records.boxes, expected, atol=1e-9)
    assert not findings.errors and findings.objects == 3
    assert says("\n".join(records.notes), "without label file", 1, "without.jpg")
    again, _ = read(root)
    assert len(set(records.image_ids.tolist())) == 4 and (again.image_ids == records.image_ids).all()


def test_splits_may_be_lists_and_labels_next_to_images(root: Path) -> None:
    near = photo(root / "extra" / "d.jpg")
    near.with_suffix(".txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (root / "train.txt").write_text("./extra/d.jpg\nimages\\val\\c.jpg\n")
    records, _ = read(root, "train", "data.train.images=[train.txt, images/val]")
    assert records.names == ["extra/d.jpg", "images/val/c.jpg"], "listed twice, used once"
    assert records.boxes.tolist() == [[20, 10, 60, 30], [0, 0, 80, 40]]
    config = load_config(root / "config.yaml")
    assert (config.data.train.title, config.data.test_title) == ("train", "val")
    assert load_config(root / "config.yaml", "data.test.images=valid/images").data.test_title == "valid"


def test_places_of_labels(tmp_path: Path) -> None:
    for image, labels in (
        ("a/images/train/x.jpg", "a/labels/train/x.txt"),
        ("images/images/x.y.png", "images/labels/x.y.txt"),
        ("train/images/x.jpg", "train/labels/x.txt"),
        ("photos/x.jpg", "photos/x.txt"),
    ):
        assert label_path(tmp_path / image) == tmp_path / labels


def test_classes_are_selected_by_name(root: Path) -> None:
    records, _ = read(root, "train", "data.classes=[dog]")
    assert [each.name for each in records.categories] == ["dog"] and records.labels.tolist() == [0]
    with refused("data.classes", "did you mean 'dog'?"):
        read(root, "train", "data.classes=[dgo]")


@pytest.mark.parametrize(
    ("line", "kind", "detail"),
    [
        ("0 0.5 0.5 0.5", "line that is no object", "expected class"),
        ("cat 0.5 0.5 0.5 0.5", "line that is no object", "line 2"),
        ("2 0.5 0.5 0.5 0.5", "object of an unknown class", "0 to 1"),
        ("0.5 0.5 0.5 0.5 0.5", "object of an unknown class", "0 to 1"),
        ("0 20 20 10 10", "coordinates that are not fractions of the image", "20 20 10 10"),
        ("0 0.5 nan 0.5 0.5", "coordinates that are not fractions of the image", "nan"),
    ],
)
def test_lines_that_cannot_be_used(root: Path, line: str, kind: str, detail: str) -> None:
    path = root / "labels/val/c.txt"
    path.write_text(f"1 0.5 0.5 1 1\n{line}\n")
    records, findings = read(root, "test")
    assert (
        list(findings.errors) == [kind] and detail in findings.errors[kind][0] and str(path) in findings.errors[kind][0]
    )
    assert len(records.labels) == 1
    with refused(kind):
        build_dataset(load_config(root / "config.yaml").data, "test")
    assert check_dataset.main([str(root / "config.yaml"), "--split", "test"]) == 1


def test_missing_parts_are_named(root: Path) -> None:
    (root / "images/val/c.jpg").write_bytes(b"no image")
    assert "image missing or unreadable" in read(root, "test")[1].errors
    with refused("images/valid", "no folder"):
        list_images(root, "images/valid")
    (root / "none").mkdir()
    with refused("no image", "none"):
        list_images(root, "none")
    (root / "data.yaml").unlink()
    with refused("data.names", "data.yaml", "classes.txt"):
        read_names(root)
    with refused("data.names", "mine.txt"):
        read_names(root, "mine.txt")


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("data.yaml", "names: [a, b]", ["a", "b"]),
        ("dataset.yaml", "names:\n  1: b\n  0: a\n", ["a", "b"]),
        ("classes.txt", "a\n\nb c\n", ["a", "b c"]),
        ("obj.names", "7\n8\n", ["7", "8"]),
    ],
)
def test_class_names(tmp_path: Path, name: str, text: str, found: list[str]) -> None:
    (tmp_path / name).write_text(text)
    assert read_names(tmp_path) == found


@pytest.mark.parametrize(
    ("text", "message"),
    [("names: {0: a, 2: b}", "without gaps"), ("names: [a, a]", "twice"), ("[1", "not YAML"), ("nc: 2", "names")],
)
def test_class_names_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "data.yaml").write_text(text)
    with refused("data.yaml", message):
        read_names(tmp_path)
