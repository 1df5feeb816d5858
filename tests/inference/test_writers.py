"""Detections in the formats of other tools."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dcn_det.config.data import YoloDataConfig, YoloSplitConfig
from dcn_det.data.formats import open_split
from dcn_det.evaluation.ground_truth import load_ground_truth
from dcn_det.images import read_image, voc_palette, write_image
from dcn_det.inference.mask_writers import MASK_WRITERS
from dcn_det.inference.segmenter import LabelMap
from dcn_det.inference.sources import Shot
from dcn_det.inference.writers import WRITERS
from dcn_det.structures import Category, Detections

CATEGORIES = (Category(7, "cat"), Category(3, "dog"))
FOUND = Detections(
    torch.tensor([[10.0, 20.0, 50.0, 40.0], [0.0, 0.0, 100.0, 80.0], [5.0, 5.0, 6.0, 6.0]]),
    torch.tensor([0.9, 0.6, 0.1]),
    torch.tensor([1, 0, 1]),
    CATEGORIES,
)
IMAGE = np.zeros((80, 100, 3), np.uint8)


@pytest.fixture
def photo(tmp_path: Path) -> Shot:
    path = tmp_path / "images" / "a b.png"
    write_image(path, IMAGE)
    return Shot(str(path), IMAGE)


def written(kind: str, folder: Path, *shots: Shot) -> Path:
    writer = WRITERS[kind](folder)
    for shot in shots:
        name = Path(shot.source).stem if shot.frame is None else f"{Path(shot.source).stem}_{shot.frame:06d}"
        writer.add(shot, name, FOUND)
    writer.close()
    return folder


def read(path: Path) -> Any:
    return json.loads(path.read_text())


FRAME = Shot("clip.mp4", IMAGE, 30, 25.0)


def test_csv_has_every_detection(photo: Shot, tmp_path: Path) -> None:
    path = written("csv", tmp_path / "out", photo, FRAME) / "detections.csv"
    rows = list(csv.DictReader(path.open()))
    assert len(rows) == 6
    assert rows[0] == {
        "image": photo.source,
        "frame": "",
        "class": "dog",
        "score": "0.9",
        "x1": "10.0",
        "y1": "20.0",
        "x2": "50.0",
        "y2": "40.0",
    }
    assert rows[3]["frame"] == "30"


def test_coco_is_an_annotation_file(photo: Shot, tmp_path: Path) -> None:
    document = read(written("coco", tmp_path / "out", photo, FRAME) / "coco.json")
    assert document["images"][0] == {"id": 1, "file_name": "a b.png", "height": 80, "width": 100}
    assert document["info"]["folder"] == str(tmp_path / "images")
    assert document["images"][1]["frame"] == 30 and document["images"][1]["video"] == "clip.mp4"
    first = document["annotations"][0]
    assert (first["category_id"], first["bbox"], first["area"]) == (3, [10, 20, 40, 20], 800)
    assert first["score"] == pytest.approx(0.9) and len(document["annotations"]) == 4
    truth = load_ground_truth(document)
    assert {category.name for category in truth.categories} == {"cat", "dog"} and not truth.notes


def test_yolo_can_be_trained_on(photo: Shot, tmp_path: Path) -> None:
    written("yolo", tmp_path, photo)
    assert (tmp_path / "labels" / "a b.txt").read_text().splitlines() == [
        "1 0.300000 0.375000 0.400000 0.250000",
        "0 0.500000 0.500000 1.000000 1.000000",
    ]
    split = YoloSplitConfig(images="images")
    index = open_split(YoloDataConfig(root=str(tmp_path), train=split, test=None), "train").index()
    boxes, labels = index.objects(0)
    assert np.allclose(boxes, FOUND.boxes[:2], atol=1e-3) and labels.tolist() == [1, 0]
    assert [category.name for category in index.categories] == ["cat", "dog"]


def test_labelme(photo: Shot, tmp_path: Path) -> None:
    folder = written("labelme", tmp_path / "out", photo, FRAME) / "labelme"
    content = read(folder / "a b.json")
    assert (folder / content["imagePath"]).resolve() == Path(photo.source).resolve()
    assert (content["imageHeight"], content["imageWidth"], content["imageData"]) == (80, 100, None)
    assert [(shape["label"], shape["shape_type"], shape["points"]) for shape in content["shapes"]] == [
        ("dog", "rectangle", [[10, 20], [50, 40]]),
        ("cat", "rectangle", [[0, 0], [100, 80]]),
    ]
    frame = read(folder / "clip_000030.json")
    assert read_image(folder / frame["imagePath"]).shape == IMAGE.shape


def test_label_studio(photo: Shot, tmp_path: Path) -> None:
    shots = [photo, Shot("https://example.org/a.png", IMAGE)]
    tasks = read(written("labelstudio", tmp_path / "out", *shots) / "labelstudio.json")
    assert tasks[0]["data"]["image"] == f"/data/local-files/?d={photo.source.lstrip('/')}"
    assert tasks[1]["data"]["image"] == "https://example.org/a.png"
    (prediction,) = tasks[0]["predictions"]
    first = prediction["result"][0]
    assert first["type"] == "rectanglelabels" and (first["original_width"], first["original_height"]) == (100, 80)
    value = first["value"]
    assert (value["x"], value["y"], value["width"], value["height"]) == (10, 25, 40, 25)
    assert value["rectanglelabels"] == ["dog"] and len(prediction["result"]) == 2
    ids = [each["id"] for task in tasks for each in task["predictions"][0]["result"]]
    assert len(set(ids)) == len(ids)


def test_segmented_images_become_polygons_and_shares(photo: Shot, tmp_path: Path) -> None:
    labels = np.zeros(IMAGE.shape[:2], np.uint8)
    labels[10:30, 20:60] = 1
    labels[50:52, 50:52] = 1  # a speck
    scores = np.full(labels.shape, 0.8, np.float32)
    scores[10:30, 40:60] = 0.3
    classes = (Category(1, "background"), Category(2, "road"))
    result = LabelMap(labels, scores, classes, voc_palette())
    for score, right in ((None, 59.5), (0.5, 39.5)):
        for kind in ("labelme", "csv"):
            writer = MASK_WRITERS[kind](tmp_path / "out", score)
            writer.add(photo, "a b", result)
            writer.close()
        (shape,) = read(tmp_path / "out" / "labelme" / "a b.json")["shapes"]
        assert (shape["label"], shape["shape_type"]) == ("road", "polygon")
        assert sorted(shape["points"]) == [[20.5, 10.5], [20.5, 29.5], [right, 10.5], [right, 29.5]]
    rows = {row["class"]: float(row["share"]) for row in csv.DictReader((tmp_path / "out" / "shares.csv").open())}
    assert rows == {"background": pytest.approx(1 - 804 / 8000), "road": pytest.approx(804 / 8000)}
