"""Pascal VOC image sets, and a detector trained, tested and evaluated on them."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

from dcn_det.config import Config, load_config
from dcn_det.data.build import build_dataset
from dcn_det.data.findings import Findings
from dcn_det.data.formats import open_split
from dcn_det.data.formats.voc import VOC_CLASSES, read_voc
from dcn_det.data.records import Records
from dcn_det.data.sampler import Draw
from dcn_det.errors import UserError
from dcn_det.evaluation.truth import Truth
from dcn_det.evaluation.voc import VocTruth
from tests.data.helpers import load_voc

OBJECT = (
    "<object><name>{}</name><difficult>{}</difficult>"
    "<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>"
    "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part></object>"
)


def write(base: Path, name: str, *objects: tuple[object, ...]) -> None:
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    things = "".join(OBJECT.format(*each) for each in objects)
    text = f"<annotation><size><width>120</width><height>80</height><depth>3</depth></size>{things}</annotation>"
    (base / "Annotations" / f"{name}.xml").write_text(text)
    cv2.imwrite(str(base / "JPEGImages" / f"{name}.jpg"), np.full((80, 120, 3), 90, np.uint8))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path / "VOC2007", "000005", ("chair", 0, 11, 21, 60, 70), ("chair", 1, 1, 1, 120, 80))
    write(tmp_path / "VOC2007", "000003", ("person", 0, "1.5", 1, 20, 30))
    write(tmp_path / "VOC2012", "2008_000002", ("tvmonitor", 0, 5, 6, 7, 8))
    (tmp_path / "VOC2007/ImageSets/Main/trainval.txt").write_text("000005\n000003\n")
    (tmp_path / "VOC2007/ImageSets/Main/chair_trainval.txt").write_text("000005  1\n000003 -1\n")
    (tmp_path / "VOC2012/ImageSets/Main/trainval.txt").write_text("2008_000002\n")
    return tmp_path


SETS = ["VOC2007/ImageSets/Main/trainval.txt", "VOC2012/ImageSets/Main/trainval.txt"]


def test_sets_are_united_and_boxes_become_half_open(root: Path) -> None:
    index = load_voc(root, SETS)
    assert index.image_ids.tolist() == [3, 5, 2008000002]
    assert [index.file_name(i) for i in range(3)][1:] == [
        "VOC2007/JPEGImages/000005.jpg",
        "VOC2012/JPEGImages/2008_000002.jpg",
    ]
    boxes, labels = index.targets(1)
    assert boxes.tolist() == [[10, 20, 60, 70]], "without the difficult one"
    assert [VOC_CLASSES[i] for i in labels] == ["chair"]
    same = read_voc(root, SETS, corners="half_open")
    assert same.boxes[np.flatnonzero(same.labels == VOC_CLASSES.index("tvmonitor"))].tolist() == [[5, 6, 7, 8]]
    assert [c.id for c in index.categories] == list(range(1, 21))
    assert "crowd" in index.report


def test_sets_of_one_class_and_the_dataset_of_a_config(root: Path) -> None:
    settings = {
        "kind": "voc",
        "root": str(root),
        "train": {"sets": SETS},
        "test": {"sets": ["VOC2007/ImageSets/Main/chair_trainval.txt"]},
    }
    data = Config.model_validate({"data": settings, "train": {"best_metric": "mAP50"}}).data
    pixels, info, target = build_dataset(data, "train")[Draw(1, False, 0)]
    assert pixels.shape == (3, 600, 900) and (info.height, info.width) == (80, 120)
    assert target is not None
    torch.testing.assert_close(target.boxes, 7.5 * torch.tensor([[10.0, 20, 60, 70]]))
    assert len(build_dataset(data, "test")) == 2


def test_a_variant_of_a_sample_config_names_image_sets_alone(root: Path, tiny: Path) -> None:
    variant = tiny.with_name("variant.yaml")
    data = {"kind": "voc", "root": str(root), "train": {"sets": SETS}, "test": {"sets": SETS[:1]}}
    variant.write_text(yaml.safe_dump({"base": tiny.name, "data": data, "train": {"best_metric": "mAP50"}}))
    config = load_config(variant)
    assert config.data.resize == load_config(tiny).data.resize, "what all kinds share is inherited"
    assert len(build_dataset(config.data, "train")) == 3
    truth = Truth.of_config(config)
    assert isinstance(truth, VocTruth) and len(truth.coco.images) == 2


def test_images_without_annotations_can_be_tested(root: Path) -> None:
    (root / "VOC2007/Annotations/000003.xml").unlink()
    (root / "VOC2007/Annotations/000005.xml").unlink()
    index = load_voc(root, SETS[:1], labelled=False)
    assert index.size(0) == (80, 120) and not index.annotated
    with pytest.raises(UserError, match=r"annotation file missing: .*000005\.xml"):
        load_voc(root, SETS[:1])


def test_a_folder_of_xml_files_and_images(tmp_path: Path) -> None:
    """As labelling tools write them: any names, side by side or in two folders, with images that have no file."""
    write(tmp_path / "a", "Bl\u00fcte 1", ("rose", 0, 11, 21, 60, 70))
    write(tmp_path / "a", "twice", ("tulip", 0, 1, 1, 5, 5))
    for path in (tmp_path / "a").rglob("*.*"):
        if path.stem.startswith("Bl"):
            path.rename(tmp_path / path.name)
    (tmp_path / "twice.jpg").write_bytes(b"another image of this name, further away than none")
    (tmp_path / "a/JPEGImages/extra.jpg").write_bytes((tmp_path / "Bl\u00fcte 1.jpg").read_bytes())
    records = read_folder(tmp_path, ".")
    assert records.names == ["Bl\u00fcte 1.jpg", "a/JPEGImages/twice.jpg"], "the nearer one of two images"
    assert records.boxes.tolist() == [[10, 20, 60, 70], [0, 0, 5, 5]]
    assert "extra.jpg" in "".join(records.notes)
    assert read_folder(tmp_path, "a").names == ["a/JPEGImages/twice.jpg"]
    with pytest.raises(UserError, match=r"no XML file in .*empty"):
        (tmp_path / "empty").mkdir()
        read_folder(tmp_path, "empty")


def read_folder(root: Path, folder: str) -> Records:
    return read_split(root, {"folder": folder})


def read_split(root: Path, split: dict) -> Records:
    opened = open_split(voc_config(root, split).data, "train")
    return opened.read(Findings(opened.source))


def voc_config(root: Path, split: dict) -> Config:
    data = {"kind": "voc", "root": str(root), "classes": ["rose", "tulip"], "test": None, "train": split}
    return Config.model_validate({"data": data, "train": {"best_metric": "mAP50"}})


@pytest.mark.parametrize(
    ("split", "names"),
    [
        ({"folder": "xml/train"}, ["photos/train/1.png", "photos/train/b c.png"]),
        ({"folder": "xml", "sets": ["lists/some.txt"]}, ["photos/train/b c.png", "photos/val/1.png"]),
        ({"folder": "xml", "without": ["lists/some.txt"]}, ["photos/train/1.png"]),
    ],
)
def test_xml_files_and_images_in_separate_folders(tmp_path: Path, split: dict, names: list[str]) -> None:
    for place in ("train/1", "train/b c", "val/1"):
        write(tmp_path / "new", "x", ("rose", 0, 11, 21, 60, 70))
        for file, target in (("Annotations/x.xml", f"xml/{place}.xml"), ("JPEGImages/x.jpg", f"photos/{place}.png")):
            (tmp_path / target).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "new" / file).rename(tmp_path / target)
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/some.txt").write_text("photos/train/b c.png\n1.xml\n")
    if "folder" in split and split.get("sets"):
        (tmp_path / "xml/train/1.xml").unlink()
    if split.get("without"):
        (tmp_path / "lists/some.txt").write_text("b c\n")
        (tmp_path / "xml/val/1.xml").unlink()
    records = read_split(tmp_path, split)
    assert records.names == names and len(set(records.image_ids.tolist())) == len(names)


def test_the_xml_file_may_name_its_image(tmp_path: Path) -> None:
    for name in ("1", "2"):
        write(tmp_path, name, ("rose", 0, 11, 21, 60, 70))
    (tmp_path / "Annotations/1.xml").rename(tmp_path / "Annotations/1.jpg.xml")
    file = tmp_path / "Annotations/2.xml"
    file.write_text(file.read_text().replace("<size>", "<filename>C:\\photos\\third.jpg</filename><size>"))
    (tmp_path / "JPEGImages/2.jpg").rename(tmp_path / "JPEGImages/third.jpg")
    assert read_split(tmp_path, {"folder": "Annotations"}).names == ["JPEGImages/1.jpg", "JPEGImages/third.jpg"]


def test_images_of_one_name_are_ambiguous_if_none_is_nearer(tmp_path: Path) -> None:
    write(tmp_path, "1", ("rose", 0, 11, 21, 60, 70))
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.jpg").write_bytes((tmp_path / "JPEGImages/1.jpg").read_bytes())
    split = open_split(voc_config(tmp_path, {"folder": "Annotations"}).data, "train")
    findings = Findings(split.source)
    split.read(findings)
    assert "several images of one name" in findings.errors


def test_equal_names_of_several_years_have_different_ids(tmp_path: Path) -> None:
    for base in ("a", "b"):
        write(tmp_path / base, "000001", ("rose", 0, 11, 21, 60, 70))
        (tmp_path / base / "ImageSets/Main/train.txt").write_text("000001\n")
    sets = {"sets": ["a/ImageSets/Main/train.txt", "b/ImageSets/Main/train.txt"]}
    ids = read_split(tmp_path, sets).image_ids.tolist()
    assert len(set(ids)) == 2 and 1 not in ids and ids == read_split(tmp_path, sets).image_ids.tolist()


def test_a_split_has_sets_or_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sets"):
        voc_config(tmp_path, {})
    with pytest.raises(UserError, match="outside"):
        read_split(tmp_path, {"folder": "/"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: (r / SETS[0]).unlink(), r"no image set .*trainval\.txt; expected a file such as VOC2007"),
        (lambda r: (r / SETS[0]).write_text("\n"), r"is empty"),
        (lambda r: (r / SETS[0]).write_text("../000005\nabc\n"), r"annotation file missing: .*abc\.xml"),
        (
            lambda r: (r / "VOC2007/Annotations/000005.xml").write_text("<a>"),
            r"annotation file unreadable: .*000005\.xml: not XML",
        ),
        (
            lambda r: write(r / "VOC2007", "000005", ("wolf", 0, 1, 1, 5, 5)),
            r"object of an unknown class: .*000005\.xml object 1 is 'wolf'",
        ),
        (
            lambda r: write(r / "VOC2007", "000005", ("cat", 0, "x", 1, 5, 5)),
            r"bndbox/xmin is 'x', expected a number",
        ),
    ],
)
def test_malformed_sets_are_refused(root: Path, change, message: str) -> None:
    change(root)
    with pytest.raises(UserError, match=message):
        read_voc(root, SETS[:1])


def test_the_best_checkpoint_is_chosen_by_a_metric_that_is_measured() -> None:
    split = {"sets": SETS}
    with pytest.raises(ValueError, match=r"(?s)train\.best_metric.*AP .* voc .*mAP50, mAP70"):
        Config.model_validate({"data": {"kind": "voc", "train": split, "test": split}})
    with pytest.raises(ValueError, match=r"(?s)train\.best_metric.*mAP50 .* coco .*AP, AP50, "):
        Config.model_validate({"train": {"best_metric": "mAP50"}})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "voc"}, r"data\.train\n.*Field required"),
        ({"train": {"sets": SETS}}, r"data\.train\.sets\n.*Extra inputs"),
    ],
)
def test_the_kind_of_data_says_how_a_split_is_named(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config.model_validate({"data": settings})
