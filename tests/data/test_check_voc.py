"""check_dataset on Pascal VOC's format: every fault found, the rest written in COCO's format and the same as read."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

from dcn_det.cli import check_dataset
from dcn_det.config import load_config
from dcn_det.data.build import build_dataset
from dcn_det.data.check import AnchorCheck
from dcn_det.data.formats.voc_check import check_voc
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


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A data set with nothing wrong but a box beyond its image."""
    write(tmp_path, "000005", ("dog", 0, 1, 1, 64, 64), ("cat", 1, 151, 101, 250, 160), ("emu", 0, "1.5", 5, 20, 30))
    write(tmp_path, "2008_000002", ("cat", 0, 10, 20, 40, 60))
    return tmp_path


@pytest.fixture
def broken(good: Path) -> Path:
    """The same with one of every kind of fault."""
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
    report = check_voc(broken, SETS, CLASSES, True, ANCHORS, workers)
    of = "VOC2007/Annotations/"
    assert report.problems == {
        "image name not made of digits": ["photo"],
        "image id used twice": [f"{of}000005.xml"],
        "image missing": ["VOC2007/JPEGImages/000009.jpg"],
        "image unreadable or truncated": ["VOC2007/JPEGImages/000010.jpg"],
        "image of another size than stated": ["VOC2007/JPEGImages/000008.jpg is 192x128, not Nonex100"],
        "annotation file missing": [f"{of}000011.xml"],
        "annotation file unreadable": [f"{of}000012.xml"],
        "annotation of an unknown category": [f"{of}000006.xml object 2 'wolf'"],
        "annotation without a usable bbox": [f"{of}000006.xml object 3"],
        "box without area": [f"{of}000006.xml object 1", f"{of}000007.xml object 1"],
        "box partly outside its image": [f"{of}000005.xml object 2"],
        "object annotated twice": [f"{of}000007.xml object 3"],
        "image without objects": [f"{of}000006.xml"],
    }
    assert not report.good
    assert (report.images, report.objects) == (10, 13)
    assert report.classes == {"cat": 5, "dog": 3, "emu": 1}
    assert sum(report.sizes) == 8, "the difficult one is not counted"
    kept = [Path(row["file_name"]).stem for row in report.fixed["images"]]
    assert sorted(kept) == ["000005", "000006", "000007", "000008", "2008_000002"]


def test_a_clean_set_has_a_class_without_objects_at_most(good: Path) -> None:
    report = check_voc(good, SETS[1:], CLASSES, True, ANCHORS)
    assert report.good and report.problems == {"category without objects": ["dog", "emu"]}
    # 31 x 41 pixels inside an anchor of 64 x 64
    assert report.coverage[2] == pytest.approx([31 * 41 / 64**2])


def test_images_to_be_tested_need_no_annotations(good: Path) -> None:
    (good / "VOC2007/Annotations/000005.xml").unlink()
    report = check_voc(good, SETS[:1], CLASSES, False, ANCHORS)
    assert report.good
    assert report.problems.pop("image without annotation file") == ["VOC2007/Annotations/000005.xml"]
    assert set(report.problems) == {"category without objects"}
    assert report.fixed["images"] == [
        {"id": 5, "file_name": "VOC2007/JPEGImages/000005.jpg", "height": 128, "width": 192}
    ]


def test_a_set_that_is_missing_is_refused(good: Path) -> None:
    with pytest.raises(UserError, match=r"no image set .*test\.txt"):
        check_voc(good, ["VOC2007/ImageSets/Main/test.txt"], CLASSES, True, ANCHORS)


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
    assert "  error annotation file unreadable: 1 (VOC2007/Annotations/000012.xml)" in text
    assert "fixed: " in text and "with 5 of 10 images, 7 of 13 objects" in text
    index = load_coco(out, broken, CLASSES)
    assert index.image_ids.tolist() == [5, 6, 7, 8, 2008000002]
    assert check_dataset.main([str(path), "data.classes=[cat,dog,emu,wolf]", "--workers", "0"]) == 1
    assert "unknown category" not in capsys.readouterr().out
    with pytest.raises(UserError, match=r"data\.test: is null"):
        check_dataset.main([str(path), "--split", "test"])
