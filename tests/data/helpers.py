"""Data sets small enough to be checked by looking."""

import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from dcn_det.data.formats.coco import read_coco
from dcn_det.data.formats.voc import VOC_CLASSES, read_voc
from dcn_det.data.index import DatasetIndex, build_index


def write_set(folder: Path, sizes: list[tuple[int, int]]) -> Path:
    """Black images (height, width), each with one white rectangle and its box."""
    document: dict[str, list] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "thing"}]}
    (folder / "images").mkdir(parents=True)
    for number, (height, width) in enumerate(sizes):
        image = np.zeros((height, width, 3), np.uint8)
        x1, y1, x2, y2 = width // 10, height // 5, width // 2, height // 2
        image[y1:y2, x1:x2] = 255
        cv2.imwrite(str(folder / "images" / f"{number}.png"), image)
        row = {"id": number, "file_name": f"{number}.png", "width": width, "height": height}
        document["images"].append(row)
        document["annotations"].append({"image_id": number, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1]})
    (folder / "boxes.json").write_text(json.dumps(document))
    return folder


def load_coco(
    annotations: str | Path, images: str | Path, classes: Sequence[str] | None = None, labelled: bool = True, **policies
) -> DatasetIndex:
    return build_index(read_coco(Path(annotations), classes, labelled), Path(images), **policies)


def load_voc(
    root: Path, sets: Sequence[str], classes: Sequence[str] = VOC_CLASSES, labelled: bool = True, **policies
) -> DatasetIndex:
    return build_index(read_voc(root, sets, classes, labelled), root, **policies)
