"""Photos that are stored rotated: which orientation annotations refer to, and what is read."""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image as PillowImage
from PIL import ImageOps

from dcn_det.config.classifier import FoldersConfig
from dcn_det.config.data import (
    CocoDataConfig,
    CocoSplitConfig,
    ResizeConfig,
    VocDataConfig,
    VocSplitConfig,
    YoloDataConfig,
    YoloSplitConfig,
)
from dcn_det.config.segmentation_data import MaskFilesConfig, MaskSplitConfig
from dcn_det.data.build import build_dataset, build_folders, build_masks
from dcn_det.data.masks import open_masks
from dcn_det.data.masks.check import check_masks
from dcn_det.data.sampler import Draw
from dcn_det.exif import turned
from dcn_det.images import image_size, index_png, read_annotated, read_image
from tests.messages import refused

HEIGHT, WIDTH = 40, 60
STORED = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
RESIZE = ResizeConfig(short_side=40, max_side=60)


def write_photo(path: Path, orientation: int = 6) -> np.ndarray:
    """Writes a photo that is stored as ``STORED``; returns it as it is shown."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = PillowImage.Exif()
    exif[0x0112] = orientation
    PillowImage.fromarray(STORED).save(path, exif=exif)
    return np.asarray(ImageOps.exif_transpose(PillowImage.open(path)))


@pytest.mark.parametrize("kind", ["png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_shown_as_pillow_shows_them(tmp_path: Path, orientation: int, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    exif = PillowImage.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"lossless": True} if kind == "webp" else {}
    PillowImage.fromarray(STORED).save(path, exif=exif, **options)
    shown = np.asarray(ImageOps.exif_transpose(PillowImage.open(path)))
    assert np.array_equal(read_image(path, upright=True), shown)
    assert image_size(path, upright=True) == shown.shape[:2]


def test_turning() -> None:
    image = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)
    assert turned(image, 6).tolist() == [[4, 1], [5, 2], [6, 3]], "clockwise"
    assert turned(image, 8).tolist() == [[3, 6], [2, 5], [1, 4]], "counterclockwise"
    assert turned(image, 3).tolist() == [[6, 5, 4], [3, 2, 1]]


@pytest.mark.parametrize(
    ("exif", "size", "upright"),
    [
        ("auto", (HEIGHT, WIDTH), False),
        ("auto", (WIDTH, HEIGHT), True),
        ("auto", (50, 70), False),
        ("auto", None, True),
        ("apply", (HEIGHT, WIDTH), True),
        ("ignore", (WIDTH, HEIGHT), False),
    ],
)
def test_the_stated_size_tells_the_orientation(
    tmp_path: Path, exif: Literal["auto", "apply", "ignore"], size: tuple[int, int] | None, upright: bool
) -> None:
    shown = write_photo(tmp_path / "a.png")
    assert np.array_equal(read_annotated(tmp_path / "a.png", size, exif), shown if upright else STORED)


def coco(root: Path, size: tuple[int, int], **settings: Any) -> CocoDataConfig:
    height, width = size
    image = {"id": 1, "file_name": "a.png", "height": height, "width": width}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [4, 6, 20, 30], "iscrowd": 0, "area": 600}
    document = {"images": [image], "categories": [{"id": 1, "name": "x"}], "annotations": [box]}
    (root / "boxes.json").write_text(json.dumps(document))
    split = CocoSplitConfig(images=".", annotations="boxes.json")
    return CocoDataConfig(root=str(root), train=split, test=None, resize=RESIZE, flip="none", **settings)


@pytest.mark.parametrize("as_shown", [True, False])
def test_training_reads_a_photo_as_it_is_annotated(tmp_path: Path, as_shown: bool) -> None:
    shown = write_photo(tmp_path / "a.png")
    expected = shown if as_shown else STORED
    dataset = build_dataset(coco(tmp_path, expected.shape[:2]), "train")
    pixels, info, target = dataset[Draw(0, False, 0)]
    assert np.array_equal(pixels.permute(1, 2, 0).numpy(), expected)
    assert (info.height, info.width) == expected.shape[:2]
    assert target is not None and target.boxes.tolist() == [[4, 6, 24, 36]]
    other = build_dataset(coco(tmp_path, expected.shape[:2], exif="ignore" if as_shown else "apply"), "train")
    with refused("a.png"):
        other[Draw(0, False, 0)]


def test_yolo_labels_refer_to_the_upright_photo(tmp_path: Path) -> None:
    shown = write_photo(tmp_path / "images" / "a.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("0 0.5 0.5 0.5 0.25\n")
    (tmp_path / "classes.txt").write_text("x\n")
    split = YoloSplitConfig(images="images")
    for exif, expected in (("apply", shown), ("ignore", STORED)):
        given: dict[str, Any] = {} if exif == "apply" else {"exif": exif}
        dataset = build_dataset(YoloDataConfig(root=str(tmp_path), train=split, test=None, **given), "train")
        assert np.array_equal(dataset.image(0), expected)
        height, width = expected.shape[:2]
        box = [0.25 * width, 0.375 * height, 0.75 * width, 0.625 * height]
        assert dataset.index.objects(0)[0].tolist() == [box]


def test_voc_without_a_size_refers_to_the_upright_photo(tmp_path: Path) -> None:
    shown = write_photo(tmp_path / "a.png")
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>20</xmax><ymax>50</ymax></bndbox>"
    (tmp_path / "a.xml").write_text(f"<annotation><object><name>x</name>{box}</object></annotation>")
    split = VocSplitConfig(folder=".")
    dataset = build_dataset(VocDataConfig(root=str(tmp_path), train=split, test=None, classes=("x",)), "train")
    assert np.array_equal(dataset.image(0), shown)


def test_images_in_folders_are_upright(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_photo(tmp_path / "val" / name / "1.png")
    data = FoldersConfig(root=str(tmp_path), val="val", size=32, resize=32)
    for exif, size in (("auto", (WIDTH, HEIGHT)), ("ignore", (HEIGHT, WIDTH))):
        _, info = build_folders(data.model_copy(update={"exif": exif}), "val")[Draw(0, False, 0)]
        assert (info.height, info.width) == size


@pytest.mark.parametrize("as_shown", [True, False])
def test_an_image_is_read_as_its_mask(tmp_path: Path, as_shown: bool) -> None:
    shown = write_photo(tmp_path / "images" / "a.png")
    expected = shown if as_shown else STORED
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "a.png").write_bytes(index_png(np.ones(expected.shape[:2], np.uint8)))
    split = MaskSplitConfig(images="images", masks="masks")
    data = MaskFilesConfig(root=str(tmp_path), train=split, test=None, classes=("x", "y"))
    image, mask = build_masks(data, "train").read(0)
    assert np.array_equal(image, expected) and mask is not None and mask.shape == image.shape[:2]
    report = check_masks(open_masks(data, "train"))
    assert report.good and bool(report.findings.notes.keys() - {"class without pixels"}) != as_shown
