"""check_dataset on Pascal VOC's format: every fault found, the rest written in COCO's format and the same as read."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

from dcn_det.cli import check_dataset
from dcn_det.config import Config, load_config
from dcn_det.data.anchor_check import AnchorCheck
from dcn_det.data.build import build_dataset
from dcn_det.data.check import Report, check_split, fixed_document
from dcn_det.data.formats import open_split
from dcn_det.data.formats.base import DataFormat
from dcn_det.errors import UserError
from dcn_det.models.anchors import cell_anchors
from tests.data.helpers import load_coco, load_voc

ANCHORS = AnchorCheck(cell_anchors(16, (1,), (4,))[None].double().numpy(), (16,), 128, 256)
CLASSES = ("cat", "dog", "emu")
SETS = ["VOC2007/ImageSets/Main/trainval.txt", "VOC2012/ImageSets/Main/trainval.txt"]


def write(root: Path, name: str, *objects: tuple[object, ...], size: tuple[object, object] = (128, 192)) -> None:
    """An image of 128 x 192 pixels, its annotations, and its name in the image set of its year."""
    base = root / ("VOC2012" if "_" in name else "VOC2007")
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    text = f"<size><height>{size[0]}</height><width>{size[1]}</width></size>"
    for label, difficult, *corners in objects:
        box = "".join(f"<{key}>{value}</{key}>" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), corners))
        text += f"<object><name>{label}</name><difficult>{difficult}</difficult><bndbox>{box}</bndbox></object>"
    (base / f"Annotations/{name}.xml").write_text(f"<annotation>{text}</annotation>")
    pixels = np.random.default_rng(0).integers(0, 255, (128, 192, 3), dtype=np.uint8)
    cv2.imwrite(str(base / f"JPEGImages/{name}.jpg"), pixels)
    with (base / "ImageSets/Main/trainval.txt").open("a") as file:
        file.write(f"{name}\n")


def split_of(root: Path, sets: list[str] = SETS, split: str = "train") -> DataFormat:
    data = {"kind": "voc", "root": str(root), "classes": list(CLASSES), "train": {"sets": sets}, "test": {"sets": sets}}
    config = Config.model_validate({"data": data, "train": {"best_metric": "mAP50"}})
    return open_split(config.data, "train" if split == "train" else "test")


def check(root: Path, sets: list[str] = SETS, split: str = "train", workers: int = 0) -> Report:
    return check_split(split_of(root, sets, split), ANCHORS, workers)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A data set with nothing wrong but a box beyond its image."""
    write(tmp_path, "000005", ("dog", 0, 1, 1, 64, 64), ("cat", 1, 151, 101, 250, 160), ("emu", 0, "1.5", 5, 20, 30))
    write(tmp_path, "2008_000002", ("cat", 0, 10, 20, 40, 60))
    return tmp_path


@pytest.fixture
def broken(good: Path) -> Path:
    """The same with one of every kind of fault."""
    write(good, "000013", ("dog", 0, 9, 5, 4, 9))
    write(good, "000006", ("dog", 0, 5, 5, 4, 9), ("wolf", 0, 1, 1, 9, 9), ("cat", 0, "x", 1, 9, 9))
    write(good, "000007", ("dog", 0, 500, 1, 510, 9), ("dog", 0, 11, 11, 30, 30), ("dog", 0, 11, 11, 30, 30))
    write(good, "000008", ("cat", 0, 1, 1, 20, 20), size=(100, "wide"))
    for name in ("000009", "000010", "000011", "000012"):
        write(good, name, ("cat", 0, 1, 1, 20, 20))
    pictures, notes = good / "VOC2007/JPEGImages", good / "VOC2007/Annotations"
    (pictures / "000009.jpg").unlink()
    (pictures / "000010.jpg").write_bytes((pictures / "000010.jpg").read_bytes()[:2000])
    (notes / "000011.xml").unlink()
    (notes / "000012.xml").write_text("<annotation>")
    with (good / SETS[0]).open("a") as file:
        file.write("photo\n000005\n")
    return good


@pytest.mark.parametrize("workers", [0, 2])
def test_every_fault_is_found_and_named(broken: Path, workers: int) -> None:
    report = check(broken, workers=workers)
    notes, images = broken / "VOC2007/Annotations", "VOC2007/JPEGImages"
    assert report.findings.errors == {
        "object without a usable box": [f"{notes}/000006.xml object 3: bndbox/xmin is 'x', expected a number"],
        "image without a usable size": [f"{notes}/000008.xml: width 'wide', height '100'"],
        "annotation file missing": [f"{notes}/000011.xml", f"{notes}/photo.xml"],
        "annotation file unreadable": [f"{notes}/000012.xml: not XML: no element found: line 1, column 12"],
        "box of negative width or height": [f"{images}/000013.jpg object 1: x 8, y 4, width -4, height 5"],
        "image missing": [f"{images}/000009.jpg"],
        "image unreadable or truncated": [f"{images}/000010.jpg"],
        "box without area": [f"{images}/000006.jpg object 1", f"{images}/000007.jpg object 1"],
    }
    assert report.findings.notes == {
        "box partly outside its image": [f"{images}/000005.jpg object 2"],
        "object annotated twice": [f"{images}/000007.jpg object 3"],
        "image without objects": [f"{images}/000013.jpg", f"{images}/000006.jpg"],
    }
    assert report.notes == (
        "repeated image names, counted once: 000005",
        "objects of other classes, left out: 'wolf' 1",
    )
    assert (report.images, report.objects) == (11, 13)
    assert report.classes == {"cat": 4, "dog": 3, "emu": 1}
    assert sum(report.sizes) == 7, "the difficult one is not counted"
    kept = [Path(row["file_name"]).stem for row in fixed_document(split_of(broken), report)["images"]]
    assert sorted(kept) == ["000005", "000006", "000007", "000013", "2008_000002"]


def test_a_clean_set_has_a_class_without_objects_at_most(good: Path) -> None:
    report = check(good, SETS[1:])
    assert report.good and report.findings.notes == {"category without objects": ["dog", "emu"]}
    # 31 x 41 pixels inside an anchor of 64 x 64
    assert report.coverage[2] == pytest.approx([31 * 41 / 64**2])


def test_images_to_be_tested_need_no_annotations(good: Path) -> None:
    (good / "VOC2007/Annotations/000005.xml").unlink()
    report = check(good, SETS[:1], "test")
    assert report.good
    assert report.findings.notes["image without annotation file"] == [f"{good}/VOC2007/Annotations/000005.xml"]
    assert fixed_document(split_of(good, SETS[:1], "test"), report)["images"] == [
        {"id": 5, "file_name": "VOC2007/JPEGImages/000005.jpg", "height": 128, "width": 192}
    ]


def test_a_set_that_is_missing_is_refused(good: Path) -> None:
    with pytest.raises(UserError, match=r"no image set .*test\.txt"):
        check(good, ["VOC2007/ImageSets/Main/test.txt"])


def config(root: Path, path: Path) -> Path:
    data = {"kind": "voc", "root": str(root), "classes": list(CLASSES), "train": {"sets": SETS}, "test": None}
    path.write_text(yaml.safe_dump({"data": data, "train": {"best_metric": "mAP50"}}))
    return path


def test_what_was_fixed_is_trained_on_as_the_original(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out, drawn = config(good, good / "c.yaml"), good / "fixed.json", good / "drawn"
    arguments = [str(path), "--workers", "0", "--fix", str(out), "--browse", str(drawn), "--samples", "2"]
    assert check_dataset.main(arguments) == 0
    text = capsys.readouterr().out
    assert f"fixed: '{out}' with 2 of 2 images, 4 of 4 objects" in text
    assert {path.name for path in drawn.iterdir()} == {"000005.jpg", "2008_000002.jpg"}
    ours, theirs = load_voc(good, SETS, CLASSES), load_coco(out, good, CLASSES)
    assert [c.name for c in theirs.categories] == list(CLASSES)
    assert ours.fingerprint() == theirs.fingerprint()
    settings = text.split("to use it: ")[1].splitlines()[0].split()
    dataset = build_dataset(load_config(path, *settings, "train.best_metric=AP50").data, "train")
    torch.testing.assert_close(dataset.index.boxes, ours.boxes)


def test_the_command_says_what_is_wrong(broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = config(broken, broken / "c.yaml"), broken / "fixed.json"
    assert check_dataset.main([str(path), "--workers", "0", "--fix", str(out)]) == 1
    text = capsys.readouterr().out
    assert "  error annotation file unreadable: 1 (" in text
    assert "fixed: " in text and "with 5 of 11 images, 6 of 13 objects" in text
    index = load_coco(out, broken, CLASSES)
    assert index.image_ids.tolist() == [5, 6, 7, 13, 2008000002]
    assert check_dataset.main([str(path), "data.classes=[cat,dog,emu,wolf]", "--workers", "0"]) == 1
    assert "other classes" not in capsys.readouterr().out
    with pytest.raises(UserError, match=r"data\.test: is null"):
        check_dataset.main([str(path), "--split", "test"])
