"""Folders of annotated images exactly as tools write them, each with the same boxes.

Every image is 120 x 80 pixels and has a cell (10, 20) to (50, 60) and, with an even number, a dish (60, 30) to
(120, 80).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

WIDTH, HEIGHT = 120, 80
CLASSES = ("cell: red, 1st", "d\u00fcnn dish")
BOXES = ((10, 20, 50, 60), (60, 30, 120, 80))
NAMES = tuple(f"Bl\u00f6od image_{number:05}" for number in range(10))


def photo(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(len(str(path.name))).integers(0, 80, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    image[20:60, 10:50] = (40, 40, 220)
    image[30:80, 60:120] = (220, 200, 40)
    good, data = cv2.imencode(path.suffix, image)
    assert good
    path.write_bytes(data.tobytes())


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def labels_of(name: str) -> Sequence[int]:
    """Classes of the boxes in an image."""
    return (0, 1) if int(name[-1]) % 2 == 0 else (0,)


def xml(name: str, filename: str, first: float = 1) -> str:
    """LabelImg's text; ``first``: the number of the first pixel, 0.0 in CVAT's."""
    objects = "".join(
        f"<object><name>{CLASSES[label]}</name><pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult>"
        f"<bndbox><xmin>{x1 + first}</xmin><ymin>{y1 + first}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox>"
        "</object>"
        for label in labels_of(name)
        for x1, y1, x2, y2 in [BOXES[label]]
    )
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
    return f"<annotation><folder>JPEGImages</folder><filename>{filename}</filename>{size}{objects}</annotation>"


def yolo(name: str) -> str:
    lines = []
    for label in labels_of(name):
        x1, y1, x2, y2 = BOXES[label]
        values = ((x1 + x2) / 2 / WIDTH, (y1 + y2) / 2 / HEIGHT, (x2 - x1) / WIDTH, (y2 - y1) / HEIGHT)
        lines.append(f"{label} " + " ".join(f"{value:.6f}" for value in values))
    return "\n".join(lines) + "\n"


def coco(files: Sequence[str], first_id: int = 1, root_category: bool = False) -> str:
    """COCO's JSON; with ``root_category``, as Roboflow writes it."""
    categories: list[dict[str, Any]] = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
    if root_category:
        categories = [
            {"id": 0, "name": "cells", "supercategory": "none"},
            *({**row, "supercategory": "cells"} for row in categories),
        ]
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, file in enumerate(files, start=first_id):
        images.append({"id": number, "license": 1, "file_name": file, "height": HEIGHT, "width": WIDTH})
        for label in labels_of(Path(file).name.split(".")[0].removesuffix("_jpg")):
            x1, y1, x2, y2 = BOXES[label]
            box = [x1, y1, x2 - x1, y2 - y1]
            row = {"id": len(annotations), "image_id": number, "category_id": label + 1, "bbox": box}
            annotations.append({**row, "area": box[2] * box[3], "segmentation": [], "iscrowd": 0})
    return json.dumps({"info": {}, "images": images, "categories": categories, "annotations": annotations})


def split_of(index: int, val: str, test: str = "test") -> str:
    return "train" if index < 7 else val if index < 9 else test


def roboflow_name(name: str) -> str:
    return f"{name}_jpg.rf.0a1b2c3d4e5f"


def voc_photos(root: Path) -> None:
    """Blood-cell photos as they circulate: a VOC tree with image sets of any name."""
    for name in NAMES:
        photo(root / "BCCD/JPEGImages" / f"{name}.jpg")
        write(root / "BCCD/Annotations" / f"{name}.xml", xml(name, f"{name}.jpg"))
    sets = {"train": NAMES[:6], "val": NAMES[6:8], "trainval": NAMES[:8], "test": NAMES[8:]}
    for each, names in sets.items():
        write(root / f"BCCD/ImageSets/Main/{each}.txt", "\n".join(names) + "\n")
        write(root / f"BCCD/ImageSets/Main/cell_{each}.txt", "".join(f"{name}  1\n" for name in names))


def voc_cvat(root: Path) -> None:
    for name in NAMES:
        photo(root / "JPEGImages" / f"{name}.png")
        write(root / "Annotations" / f"{name}.xml", xml(name, f"{name}.png", first=0.0))
    write(root / "ImageSets/Main/default.txt", "\n".join(NAMES) + "\n")
    write(root / "labelmap.txt", "# label:color_rgb:parts:actions\nbackground:0,0,0::\n")


def voc_labelimg(root: Path) -> None:
    """XML files next to the images, in folders by day."""
    for i, name in enumerate(NAMES):
        photo(root / f"day {i % 2}" / f"{name}.jpg")
        write(root / f"day {i % 2}" / f"{name}.xml", xml(name, f"{name}.jpg"))


def voc_roboflow(root: Path) -> None:
    for i, name in enumerate(NAMES):
        folder = root / split_of(i, "valid")
        photo(folder / f"{roboflow_name(name)}.jpg")
        write(folder / f"{roboflow_name(name)}.xml", xml(name, f"{roboflow_name(name)}.jpg"))
    write(root / "README.roboflow.txt", "cells\n")


def voc_lists(root: Path) -> None:
    """Folders of other names than VOC's, with lists of images and XML files (PaddleDetection)."""
    for i, name in enumerate(NAMES):
        photo(root / "images" / f"{name}.jpg")
        write(root / "annotations" / f"{name}.xml", xml(name, f"{name}.jpg"))
        with (root / ("train.txt" if i < 8 else "valid.txt")).open("a", encoding="utf-8") as file:
            file.write(f"./images/{name}.jpg ./annotations/{name}.xml\n")
    write(root / "label_list.txt", "\n".join(CLASSES) + "\n")


def yolo_roboflow(root: Path) -> None:
    for i, name in enumerate(NAMES):
        folder = root / split_of(i, "valid")
        photo(folder / "images" / f"{roboflow_name(name)}.jpg")
        write(folder / "labels" / f"{roboflow_name(name)}.txt", yolo(name))
    places = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n"
    write(root / "data.yaml", f"{places}\nnc: 2\nnames: {json.dumps(CLASSES)}\n")
    write(root / "README.dataset.txt", "cells\n")


def yolo_ultralytics(root: Path) -> None:
    """With the path of the machine on which it was made."""
    for i, name in enumerate(NAMES):
        photo(root / "images" / split_of(i, "val", "val") / f"{name}.jpg")
        write(root / "labels" / split_of(i, "val", "val") / f"{name}.txt", yolo(name))
    names = "".join(f"  {i}: {json.dumps(name)}\n" for i, name in enumerate(CLASSES))
    write(root / "cells.yaml", f"path: /content/datasets/cells\ntrain: images/train\nval: images/val\nnames:\n{names}")


def yolo_cvat(root: Path) -> None:
    """CVAT's format YOLO 1.1."""
    for i, name in enumerate(NAMES):
        subset = "train" if i < 8 else "valid"
        photo(root / f"obj_{subset}_data" / f"{name}.jpg")
        write(root / f"obj_{subset}_data" / f"{name}.txt", yolo(name))
        with (root / f"{subset}.txt").open("a", encoding="utf-8") as file:
            file.write(f"data/obj_{subset}_data/{name}.jpg\n")
    write(root / "obj.names", "\n".join(CLASSES) + "\n")
    write(root / "obj.data", "classes = 2\ntrain = data/train.txt\nvalid = data/valid.txt\nnames = data/obj.names\n")


def yolo_label_studio(root: Path) -> None:
    for name in NAMES:
        photo(root / "images" / f"1f2e3d4c-{name}.jpg")
        write(root / "labels" / f"1f2e3d4c-{name}.txt", yolo(name))
    write(root / "classes.txt", "\n".join(CLASSES) + "\n")
    write(root / "notes.json", json.dumps({"categories": [{"id": 0, "name": CLASSES[0]}], "info": {"version": "1.0"}}))


def yolo_labelimg(root: Path) -> None:
    """Labels next to the images, in a folder with the list of classes; one image has no objects."""
    for name in NAMES:
        photo(root / "p" / f"{name}.jpg")
        write(root / "p" / f"{name}.txt", yolo(name))
    photo(root / "p" / "nothing.jpg")
    write(root / "p/classes.txt", "\n".join(CLASSES) + "\n")


def coco_roboflow(root: Path) -> None:
    for split in ("train", "valid", "test"):
        names = [f"{roboflow_name(n)}.jpg" for i, n in enumerate(NAMES) if split_of(i, "valid") == split]
        for name in names:
            photo(root / split / name)
        write(root / split / "_annotations.coco.json", coco(names, first_id=0, root_category=True))


def coco_original(root: Path) -> None:
    for split, names in (("train2017", NAMES[:8]), ("val2017", NAMES[8:])):
        for name in names:
            photo(root / split / f"{name}.jpg")
        write(root / f"annotations/instances_{split}.json", coco([f"{name}.jpg" for name in names]))
        captions = {"images": [], "annotations": [{"caption": "cells"}]}
        write(root / f"annotations/captions_{split}.json", json.dumps(captions))


def coco_cvat(root: Path) -> None:
    for name in NAMES:
        photo(root / "images/default" / f"{name}.jpg")
    write(root / "annotations/instances_default.json", coco([f"{name}.jpg" for name in NAMES]))


def coco_label_studio(root: Path) -> None:
    for name in NAMES:
        photo(root / "images" / f"{name}.jpg")
    write(root / "result.json", coco([f"images/{name}.jpg" for name in NAMES], first_id=0))


TREES: dict[str, tuple[Callable[[Path], None], int, int]] = {
    "voc_photos": (voc_photos, 6, 2),
    "voc_cvat": (voc_cvat, 0, 0),
    "voc_labelimg": (voc_labelimg, 0, 0),
    "voc_roboflow": (voc_roboflow, 7, 2),
    "voc_lists": (voc_lists, 8, 2),
    "yolo_roboflow": (yolo_roboflow, 7, 2),
    "yolo_ultralytics": (yolo_ultralytics, 7, 3),
    "yolo_cvat": (yolo_cvat, 8, 2),
    "yolo_label_studio": (yolo_label_studio, 0, 0),
    "yolo_labelimg": (yolo_labelimg, 0, 0),
    "coco_roboflow": (coco_roboflow, 7, 2),
    "coco_original": (coco_original, 8, 2),
    "coco_cvat": (coco_cvat, 0, 0),
    "coco_label_studio": (coco_label_studio, 0, 0),
}
"""Layout -> function that writes it, and the images of its own splits for training and testing; 0: it has none."""
