"""Folders as tools write them are found, read without changes, and divided."""

from pathlib import Path

import numpy as np
import pytest

from dcn_det.data.formats import open_split
from dcn_det.data.layouts import find_layouts
from dcn_det.data.layouts.tree import role_of
from dcn_det.starting.data import find_data, section_of
from tests.messages import refused, says
from tests.starting.trees import BOXES, CLASSES, NAMES, TREES, coco, photo, write, xml, yolo


@pytest.mark.parametrize("name", TREES)
def test_every_layout_is_found_and_read(tmp_path: Path, name: str) -> None:
    make, train, test = TREES[name]
    root = tmp_path / "my data\u00e9"
    make(root)
    before = sorted(path.relative_to(root) for path in root.rglob("*"))
    data = find_data(root)
    assert data.settings["kind"] == name.split("_")[0] and data.classes == sorted(CLASSES)
    assert not data.problems
    splits = [open_split(section_of(data.settings), split) for split in ("train", "test")]
    records = [split.records() for split in splits]
    numbers = [len(each.names) for each in records]
    assert numbers == [train, test] if train else sum(numbers) >= len(NAMES) and min(numbers) > 0
    names = [name for each, split in zip(records, splits) for name in split_names(each.names, split.folder)]
    assert len(set(names)) == len(names), "no image is in both splits"
    assert sorted(path.relative_to(root) for path in root.rglob("*")) == before, "nothing is written"
    for each, split in zip(records, splits):
        for owner, label, box in zip(each.owners, each.labels, each.boxes):
            assert (split.folder / each.names[owner]).is_file()
            np.testing.assert_allclose(box, BOXES[CLASSES.index(each.categories[label].name)], atol=1e-3)
    used = {name for each in records for name in each.names}
    assert all(any(known in name for name in used) for known in NAMES[: train + test])


def split_names(names: list[str], folder: Path) -> list[str]:
    return [str(folder / name) for name in names]


def test_all_classes_are_in_both_parts_and_the_division_is_the_same_every_time(tmp_path: Path) -> None:
    TREES["yolo_label_studio"][0](tmp_path)
    settings = find_data(tmp_path).settings
    assert settings == find_data(tmp_path).settings
    assert settings["train"]["part"] == [0, 0.8] and settings["test"]["part"] == [0.8, 1]
    for split in ("train", "test"):
        records = open_split(section_of(settings), split).records()
        assert set(records.labels.tolist()) == {0, 1}


def test_several_formats_are_named_and_one_can_be_chosen(tmp_path: Path) -> None:
    TREES["voc_labelimg"][0](tmp_path)
    names = [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*.jpg"))][:4]
    write(tmp_path / "some.json", coco(names))
    assert [each.kind for each in find_layouts(tmp_path)] == ["voc", "coco"]
    data = find_data(tmp_path)
    assert data.settings["kind"] == "voc" and says("\n".join(data.lines), "also found", "--format coco")
    assert len(find_data(tmp_path, "coco").records.names) == 4
    with refused("YOLO", "no annotations"):
        find_data(tmp_path, "yolo")


def test_the_corners_of_boxes_follow_from_their_numbers(tmp_path: Path) -> None:
    for name, first in (("one", 1), ("zero", 0)):
        photo(tmp_path / name / "1.jpg")
        text = xml("1", "1.jpg", first).replace(f"<xmin>{10 + first}<", f"<xmin>{first}<")
        write(tmp_path / name / "1.xml", text)
        data = find_data(tmp_path / name)
        assert data.settings["corners"] == ("inclusive" if first else "half_open")
        assert data.records.boxes[0].tolist() == [0, 20, 50, 60]


@pytest.mark.parametrize(
    ("path", "role"),
    [
        ("annotations/instances_train2017.json", "train"),
        ("valid/_annotations.coco.json", "val"),
        ("obj_test_data/train/x.txt", "train"),
        ("trainval.txt", "train"),
        ("strain/latest/evaluation.txt", None),
        ("images", None),
    ],
)
def test_names_of_splits(path: str, role: str | None) -> None:
    assert role_of(path) == role


def test_training_images_that_a_test_set_repeats_are_left_out_of_it(tmp_path: Path) -> None:
    TREES["voc_photos"][0](tmp_path)
    write(tmp_path / "BCCD/ImageSets/Main/val.txt", "\n".join(NAMES[4:8]) + "\n")
    settings = find_data(tmp_path).settings
    assert settings["test"]["without"] == settings["train"]["sets"]
    assert len(open_split(section_of(settings), "test").records().names) == 2


def test_one_image_is_only_trained_on(tmp_path: Path) -> None:
    photo(tmp_path / "1.jpg")
    write(tmp_path / "1.xml", xml("1", "1.jpg"))
    assert find_data(tmp_path).settings["test"] is None


def test_what_cannot_be_used_is_said(tmp_path: Path) -> None:
    with refused("nowhere", "no such folder"):
        find_data(tmp_path / "nowhere")
    with refused("no images", "no annotations"):
        find_data(tmp_path)
    photo(tmp_path / "a.jpg")
    write(tmp_path / "a.txt", yolo("a0"))
    with refused("1", "no class names", "classes.txt"):
        find_data(tmp_path)
    with refused("a.jpg", "not a folder"):
        find_data(tmp_path / "a.jpg")
    (tmp_path / "a.txt").unlink()
    write(tmp_path / "boxes.json", coco(["elsewhere/b0.jpg"]))
    with refused("none of the images", "boxes.json", "elsewhere/b0.jpg"):
        find_data(tmp_path)
    write(tmp_path / "boxes.json", coco(["a0.jpg"])[:-1])
    with refused("boxes.json", "not valid JSON"):
        find_data(tmp_path)
