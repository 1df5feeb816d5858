"""Splits of several image folders and annotation files: the same data as in one file."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from dcn_det.cli import check_dataset
from dcn_det.cli import test as test_command
from dcn_det.cli import train as train_command
from dcn_det.config import load_config
from dcn_det.config.data import CocoDataConfig, CocoSplitConfig
from dcn_det.data.build import build_dataset
from dcn_det.data.formats import open_split
from dcn_det.data.sampler import Draw
from dcn_det.evaluation.truth import Truth
from tests.conftest import ROOT
from tests.messages import refused, says


def divide(root: Path, target: Path, folders: tuple[str, str] = ("a", "b")) -> Path:
    """Moves the training set into two folders with an annotation file each; images alternate."""
    document = json.loads((root / "annotations" / "train.json").read_text())
    for number, name in enumerate(folders):
        images = document["images"][number::2]
        ids = {each["id"] for each in images}
        (target / name).mkdir(parents=True, exist_ok=True)
        for each in images:
            shutil.copy(root / "train" / each["file_name"], target / name)
        annotations = [each for each in document["annotations"] if each["image_id"] in ids]
        write(target / f"{number}.json", document | {"images": images, "annotations": annotations})
    return target


def write(path: Path, document: object) -> None:
    path.write_text(json.dumps(document))


def change(path: Path, **sections: Any) -> None:
    write(path, json.loads(path.read_text()) | sections)


@pytest.fixture
def halves(sample_root: Path, tmp_path: Path) -> Path:
    return divide(sample_root, tmp_path / "halves")


def data_of(root: Path, images: Any = ("a", "b"), annotations: Any = ("0.json", "1.json")) -> CocoDataConfig:
    split = CocoSplitConfig(images=images, annotations=annotations)
    return CocoDataConfig(root=str(root), train=split, test=split)


@pytest.mark.parametrize(
    ("folders", "images"),
    [(("a", "b"), ("a", "b")), (("a", "a"), "a"), (("a", "deep/b"), ("a", "deep/b")), (("a", "b"), ("absolute", "b"))],
)
def test_two_files_are_the_data_of_one(sample_root: Path, tmp_path: Path, folders: Any, images: Any) -> None:
    root = divide(sample_root, tmp_path / "halves", folders)
    if images[0] == "absolute":
        images = (str(root / "a"), "b")
    one = data_of(sample_root, "train", "annotations/train.json")
    first, second = build_dataset(one, "train"), build_dataset(data_of(root, images), "train")
    for name in ("image_ids", "sizes", "boxes", "labels", "crowd", "offsets"):
        assert torch.equal(getattr(first.index, name), getattr(second.index, name)), name
    for i in range(len(first)):
        ours, theirs = first[Draw(i, False, 0)], second[Draw(i, False, 0)]
        assert torch.equal(ours[0], theirs[0]), "the pixels come from the folder of the image's file"
    assert says(second.index.report, root / "0.json", root / "1.json", "12 of 12 images")


def test_ground_truth_is_that_of_one_file(sample_root: Path, halves: Path) -> None:
    one, two = (
        Truth.of_config(load_config(ROOT / "configs/sample/faster_rcnn.yaml", {"data": data.model_dump()}))
        for data in (data_of(sample_root, "train", "annotations/train.json"), data_of(halves))
    )
    assert one.coco.images == two.coco.images and one.coco.categories == two.coco.categories
    boxes = [{(each["image_id"], *each["bbox"]) for each in truth.coco.annotations} for truth in (one, two)]
    assert boxes[0] == boxes[1] and len(one.coco.annotations) == len(two.coco.annotations)
    assert two.image_folder is not None
    assert all((two.image_folder / name).is_file() for name in two.coco.file_names.values())
    assert (one.title, two.title) == ("train", "0+1")


def test_a_detector_is_trained_and_tested_on_lists(
    tiny: Path, halves: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    split = "{images: [a, b], annotations: [0.json, 1.json]}"
    settings = ["data.kind=coco", f"data.root={halves}", f"data.train={split}", f"data.test={split}", "data.cache=disk"]
    output = tmp_path / "run"
    assert train_command.main([str(tiny), *settings, "--output", str(output), "train.iterations=1"]) == 0
    assert "in both the training and the test split: 12 (" in (output / "log.txt").read_text()
    assert test_command.main([str(tiny), *settings, "--weights", str(output / "last.pth"), "--submission", "a"]) == 0
    assert "12 images" in capsys.readouterr().out
    config = load_config(output / "config.yaml")
    assert isinstance(config.data.train, CocoSplitConfig) and config.data.train.images == ("a", "b")


def test_the_same_id_in_two_files_is_refused_with_both(halves: Path) -> None:
    rows = json.loads((halves / "0.json").read_text())["images"]
    ours = json.loads((halves / "1.json").read_text())["images"]
    for again in (rows[0], ours[0] | {"id": rows[0]["id"]}):
        change(halves / "1.json", images=[again, *ours[1:]], annotations=[])
        with refused("image id used twice", rows[0]["id"], halves / "0.json", halves / "1.json", again["file_name"]):
            open_split(data_of(halves), "train").records()


def test_categories_have_to_agree(halves: Path) -> None:
    rows = json.loads((halves / "1.json").read_text())["categories"]
    for other in ([*rows[:-1], rows[-1] | {"name": "ten"}], rows[:-1], [*rows, {"id": 99, "name": "ten"}]):
        change(halves / "1.json", categories=other)
        with refused("category", halves / "0.json", halves / "1.json"):
            open_split(data_of(halves), "train").records()


def test_one_of_the_files_may_have_no_objects(halves: Path) -> None:
    change(halves / "1.json", annotations=[])
    records = open_split(data_of(halves), "train").records()
    assert len(records.names) == 12 and set(records.owners.tolist()) <= set(range(6))


def test_problems_name_the_file(halves: Path, capsys: pytest.CaptureFixture[str], tiny: Path) -> None:
    rows = json.loads((halves / "1.json").read_text())["annotations"]
    change(halves / "1.json", annotations=[*rows[1:], rows[0] | {"bbox": [5, 5, -1, 5], "id": 7}])
    last = len(rows) - 1
    with refused("negative", f"annotations[{last}]", halves / "1.json"):
        open_split(data_of(halves), "train").records()
    split = "{images: [a, b], annotations: [0.json, 1.json]}"
    settings = ["data.kind=coco", f"data.root={halves}", f"data.train={split}"]
    assert check_dataset.main([str(tiny), *settings, "--workers", "0"]) == 1
    assert says(capsys.readouterr().out, "negative", halves / "1.json", f"annotations[{last}]")
    with refused("data.train.images", halves / "gone"):
        build_dataset(data_of(halves, ("a", "gone")), "train")
    with refused("data.train.annotations", halves / "gone.json"):
        build_dataset(data_of(halves, annotations=("0.json", "gone.json")), "train")
    with refused("images", 2, "annotation", 1):
        load_config(tiny, "data.train.images=[a, b]")


def test_files_that_both_count_from_1_are_fixed(
    halves: Path, tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("0.json", "1.json"):
        document = json.loads((halves / name).read_text())
        new = {row["id"]: number for number, row in enumerate(document["images"], start=1)}
        for row in document["images"]:
            row["id"] = new[row["id"]]
        for row in document["annotations"]:
            row["image_id"] = new[row["image_id"]]
        write(halves / name, document)
    fixed, split = tmp_path / "fixed.json", "{images: [a, b], annotations: [0.json, 1.json]}"
    settings = ["data.kind=coco", f"data.root={halves}", f"data.train={split}"]
    assert check_dataset.main([str(tiny), *settings, "--workers", "0", "--fix", str(fixed)]) == 1
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("to use it: "))
    assert len(json.loads(fixed.read_text())["images"]) == 12
    use = line.removeprefix("to use it: ").split()
    assert check_dataset.main([str(tiny), *settings, *use, "--workers", "0"]) == 0
