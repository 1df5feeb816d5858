"""Data as people have it: splits that differ in their classes, photographs that cannot be read, odd names."""

import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
import pytest

from dcn_det.cli import check_dataset, infer, test, train
from dcn_det.config import load_config
from dcn_det.engine.testing import load
from dcn_det.errors import UserError
from dcn_det.images import as_rgb, is_readable, read_image, write_image
from tests.data.helpers import write_set
from tests.messages import says


def document(sample_root: Path, split: str = "val") -> dict[str, Any]:
    return json.loads((sample_root / "annotations" / f"{split}.json").read_text())


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, tiny_settings: dict) -> Path:
    output = tmp_path_factory.mktemp("own") / "run"
    settings = output.with_suffix(".yaml")
    settings.write_text(json.dumps(tiny_settings))
    assert train.main([str(settings), "--output", str(output), "train.iterations=1", "data.test=null"]) == 0
    return output / "last.pth"


def test_a_split_that_lacks_a_class_or_orders_them_differently_is_matched_by_name(
    tiny: Path, weights: Path, tmp_path: Path, sample_root: Path
) -> None:
    truth = document(sample_root)
    gone = truth["categories"].pop(3)
    truth["annotations"] = [row for row in truth["annotations"] if row["category_id"] != gone["id"]]
    turned = {row["id"]: 100 - row["id"] for row in truth["categories"]}
    for row in truth["categories"]:
        row["id"] = turned[row["id"]]
    for row in truth["annotations"]:
        row["category_id"] = turned[row["category_id"]]
    names = {row["id"]: row["name"] for row in truth["categories"]}
    path = tmp_path / "turned.json"
    path.write_text(json.dumps(truth))
    settings = ["data.kind=coco", "test.score_threshold=0.0"]
    original, other = tmp_path / "original", tmp_path / "other"
    common = [str(tiny), "--weights", str(weights), *settings]
    assert test.main([*common, "--output", str(original)]) == 0
    assert test.main([*common, f"data.test.annotations={path}", "--output", str(other)]) == 0
    before = {row["id"]: row["name"] for row in document(sample_root)["categories"]}
    expected = [
        (row["image_id"], before[row["category_id"]], row["score"])
        for row in json.loads((original / "detections.json").read_text())
        if before[row["category_id"]] != gone["name"]
    ]
    found = json.loads((other / "detections.json").read_text())
    assert expected == [(row["image_id"], names[row["category_id"]], row["score"]) for row in found]
    assert gone["name"] not in json.loads((other / "metrics.json").read_text())["per_class"]


def test_annotations_of_the_test_split_are_refused_before_training(
    tiny: Path, tmp_path: Path, sample_root: Path
) -> None:
    truth = document(sample_root)
    truth["annotations"][5]["area"] = float("nan")
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(truth))
    output = tmp_path / "run"
    with pytest.raises(UserError, match=r"annotations\[5\]\.area"):
        train.main([str(tiny), "data.kind=coco", f"data.test.annotations={path}", "--output", str(output)])
    assert not list(output.glob("*.pth"))


def test_images_of_both_splits_are_reported(tiny: Path, tmp_path: Path, sample_root: Path) -> None:
    output = tmp_path / "run"
    test_split = "data.test={images: train, annotations: annotations/train.json}"
    arguments = [str(tiny), "data.kind=coco", test_split, "train.iterations=1"]
    assert train.main([*arguments, "--output", str(output)]) == 0
    assert "in both the training and the test split: 12 (" in (output / "log.txt").read_text()


def test_the_root_category_of_an_export_is_ignored(tiny: Path, tmp_path: Path, sample_root: Path) -> None:
    truth = document(sample_root, "train")
    truth["categories"] = [{"id": 0, "name": "digit", "supercategory": "none"}, *truth["categories"]]
    path = tmp_path / "export.json"
    path.write_text(json.dumps(truth))
    output = tmp_path / "run"
    arguments = [str(tiny), "data.kind=coco", f"data.train.annotations={path}", "train.iterations=1"]
    assert train.main([*arguments, "--output", str(output)]) == 0
    assert "group others, ignored: digit" in (output / "log.txt").read_text()
    assert load(output / "last.pth").names == [str(digit) for digit in range(10)]


def test_inference_goes_on_after_what_it_cannot_read(
    weights: Path, tmp_path: Path, sample_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, output = tmp_path / "photos", tmp_path / "out"
    folder.mkdir()
    photo = next((sample_root / "val").iterdir())
    for name in ("a.jpg", "c.jpg", "._c.jpg"):
        (folder / name).write_bytes(photo.read_bytes())
    (folder / "b.jpg").write_bytes(b"no image")
    os.mkfifo(folder / "d.jpg")
    assert infer.main([str(folder), "--weights", str(weights), "--output", str(output)]) == 1
    records = json.loads((output / "detections.json").read_text())
    assert [Path(row["image"]).name for row in records] == ["a.jpg", "c.jpg"]
    said = capsys.readouterr().err
    assert "b.jpg" in said and "d.jpg" in said and "2 of 4 images" in said


def test_photographs_are_shown_upright_and_trained_on_as_stored(tmp_path: Path) -> None:
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[:, :10] = (255, 0, 0)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees clockwise when shown
    PIL.Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif, quality=95)
    assert read_image(tmp_path / "a.jpg").shape == (20, 30, 3)
    shown = as_rgb(tmp_path / "a.jpg")
    assert shown.shape == (30, 20, 3) and shown[2, 10, 0] > 200 and shown[25, 10, 0] < 50


def test_rotated_photographs_are_reported_and_left_out_of_the_fixed_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_set(tmp_path / "set", [(40, 60), (40, 60), (40, 60)])
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    for name in ("1.jpg", "2.jpg"):
        PIL.Image.new("RGB", (60, 40)).save(root / "images" / name, exif=exif)
    truth = json.loads((root / "boxes.json").read_text())
    for row, name in zip(truth["images"], ("0.png", "1.jpg", "2.jpg")):
        row["file_name"] = name
    truth["images"][1] |= {"width": 40, "height": 60}
    (root / "boxes.json").write_text(json.dumps(truth))
    config, fixed = tmp_path / "c.yaml", tmp_path / "fixed.json"
    split = {"images": "images", "annotations": "boxes.json"}
    config.write_text(json.dumps({"data": {"root": str(root), "train": split, "test": None}}))
    assert check_dataset.main([str(config), "--workers", "0"]) == 0, "the annotated size tells the orientation"
    printed = capsys.readouterr().out
    assert says(printed, "note", "EXIF", "2.jpg") and "1.jpg" not in printed
    arguments = [str(config), "data.exif=ignore", "--workers", "0", "--fix", str(fixed)]
    assert check_dataset.main(arguments) == 1
    printed = capsys.readouterr().out
    assert says(printed, "error", "EXIF", "1.jpg")
    assert says(printed, "note", "EXIF", "2.jpg")
    result = json.loads(fixed.read_text())
    assert [row["file_name"] for row in result["images"]] == ["0.png", "2.jpg"]
    assert [row["bbox"] for row in result["annotations"]] == [truth["annotations"][i]["bbox"] for i in (0, 2)]


def test_images_that_state_too_many_pixels_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(b"\0" * 200_000, 9)
    header = struct.pack(">IIBBBBB", 65_500, 65_500, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(data)
    with pytest.raises(UserError, match=r"bomb\.png has 65500x65500 pixels, .*data\.max_pixels"):
        read_image(tmp_path / "bomb.png")
    assert not is_readable(tmp_path / "bomb.png")
    write_image(tmp_path / "a.png", np.zeros((30, 40, 3), np.uint8))
    with pytest.raises(UserError, match="40x30"):
        read_image(tmp_path / "a.png", max_pixels=1199)
    assert read_image(tmp_path / "a.png", max_pixels=1200).shape == (30, 40, 3)


@pytest.mark.parametrize("suffix", [".png", ".webp", ".bmp", ".tiff", ".jpg"])
@pytest.mark.parametrize("size", [(1, 1), (3, 200), (200, 7)])
def test_small_images_of_every_format_are_readable(tmp_path: Path, suffix: str, size: tuple[int, int]) -> None:
    path = tmp_path / f"a{suffix}"
    cv2.imwrite(str(path), np.full((*size, 3), 200, np.uint8))
    assert is_readable(path) and read_image(path).shape == (*size, 3)


@pytest.mark.parametrize("special", ["/dev/zero", "fifo"])
def test_devices_and_pipes_are_no_images(tmp_path: Path, special: str) -> None:
    path = Path(special)
    if special == "fifo":
        path = tmp_path / "pipe.jpg"
        os.mkfifo(path)
    with pytest.raises(UserError, match="not a regular file"):
        read_image(path)
    assert not is_readable(path)


@pytest.mark.parametrize("name", ["../outside.png", "/etc/hostname", "a/../../b.png", "..\\b.png"])
def test_names_outside_the_image_folder_are_refused(tmp_path: Path, name: str) -> None:
    from dcn_det.data.formats.coco import read_coco

    root = write_set(tmp_path / "set", [(40, 60)])
    truth = json.loads((root / "boxes.json").read_text())
    truth["images"][0]["file_name"] = name
    (root / "boxes.json").write_text(json.dumps(truth))
    with pytest.raises(UserError, match="outside the image folder"):
        read_coco(root / "boxes.json")


def test_a_class_name_with_a_slash_is_tested(tmp_path: Path, tiny: Path, weights: Path, sample_root: Path) -> None:
    from dcn_det.categories import Category
    from dcn_det.evaluation.ground_truth import load_ground_truth
    from dcn_det.evaluation.voc import read_voc_results, write_voc_results

    names = ("bolt/.M8", "a_b", "b", "per%cent")
    truth = {
        "images": [{"id": 1, "file_name": "my photo.png", "height": 9, "width": 9}],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names)],
        "annotations": [{"image_id": 1, "category_id": 0, "bbox": [1, 1, 2, 2]}],
    }
    results = [{"image_id": 1, "category_id": i, "bbox": [1.0, 1, 3, 4], "score": 0.5} for i in range(4)]
    categories = [Category(i, name) for i, name in enumerate(names)]
    write_voc_results(tmp_path / "voc", results, {1: "my photo"}, categories, "some_test")
    assert len(list((tmp_path / "voc").iterdir())) == 4
    again = read_voc_results(tmp_path / "voc", load_ground_truth(truth))
    assert sorted(again, key=lambda row: row["category_id"]) == results
    assert load_config(tiny).data.max_pixels == 2**27
