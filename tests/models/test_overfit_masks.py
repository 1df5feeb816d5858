"""DeepLab learns the masks of four photos by heart, through the tools, plain beside deformable.

What is learnt here is found only if loading, loss, upsampling, testing and evaluation agree about every pixel. Minutes
for each network, and therefore left out of the tests' normal runs:

    python -m pytest -m overfit tests/models/test_overfit_masks.py
"""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from pycocotools import mask as coco_masks

from dcn_det.cli import test, train
from dcn_det.images import read_image, write_image, write_indices

ROOT = Path(__file__).resolve().parents[2]
PHOTOS = 4
LEAST, MOST = 0.15, 0.6
"""Smallest and largest share of a photo that is covered by the objects of its class."""
SIDES = {"short_side": 480, "max_side": 640}


def regions(image: dict[str, Any], objects: list[dict[str, Any]]) -> dict[int, np.ndarray]:
    """Masks, bool (height, width), by category."""
    found: dict[int, np.ndarray] = {}
    height, width = image["height"], image["width"]
    for each in objects:
        form = each["segmentation"]
        if isinstance(form, dict):
            form = coco_masks.frPyObjects(form, height, width) if isinstance(form["counts"], list) else form
        else:
            form = coco_masks.merge(coco_masks.frPyObjects(form, height, width))
        region = coco_masks.decode(form).astype(bool)
        found[each["category_id"]] = found.get(each["category_id"], np.zeros_like(region)) | region
    return found


def write_photos(source: Path, folder: Path) -> list[str]:
    """Writes photos with objects of one category, and their masks; returns settings that name them."""
    whole = json.loads((source / "annotations" / "instances_train2017_subset.json").read_text())
    names = {each["id"]: each["name"] for each in whole["categories"]}
    objects: dict[int, list[dict[str, Any]]] = {}
    for each in whole["annotations"]:
        objects.setdefault(each["image_id"], []).append(each)
    chosen: list[tuple[dict[str, Any], int, np.ndarray]] = []
    for image in sorted(whole["images"], key=lambda image: image["id"]):
        found = regions(image, objects.get(image["id"], []))
        fits = len(found) == 1 and all(LEAST < region.mean() < MOST for region in found.values())
        if fits and not {*found} & {category for _, category, _ in chosen}:
            ((category, region),) = found.items()
            chosen.append((image, category, region))
    chosen = chosen[:PHOTOS]
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for label, (image, _, region) in enumerate(chosen, start=1):
        photo = read_image(source / "train2017" / image["file_name"])
        write_image(folder / "images" / f"{label}.jpg", photo)
        indices = np.where(region, label, 0).astype(np.uint8)
        border = cv2.morphologyEx(region.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
        indices[border > 0] = 255  # as in Pascal VOC
        write_indices(folder / "masks" / f"{label}.png", indices)
    classes = json.dumps(["background", *(names[category] for _, category, _ in chosen)])
    split = "{images: images, masks: masks}"
    return [
        *("data.kind=masks", f"data.root={folder}", f"data.train={split}", f"data.test={split}"),
        f"data.classes={classes}",
    ]


SMALL: dict[str, Any] = {
    "model": {
        "channels": 128,
        "hidden_init": "he",
        "backbone": {
            "kind": "resnet18",
            "width": 24,
            "stem_width": 24,
            "stem_pool": "pad",
            "weights": "none",
            "norm": "bn",
            "frozen_stages": 0,
        },
    },
    "train": {
        "iterations": 500,
        "batch_size": 2,
        "reference_batch": 2,
        "optimizer": {"kind": "adamw", "lr": 2e-3},
        "schedule": {"kind": "cosine"},
        "warmup": {"kind": "linear", "iterations": 10},
        "clip_norm": 10,
    },
    "device": "cpu",
}


@pytest.mark.overfit
@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("variant", ["atrous2", "dconv"])
def test_four_photos_are_learnt_by_heart(variant: str, shared: Path, tmp_path: Path) -> None:
    photos = write_photos(shared / "data" / "coco_subset", tmp_path / "photos")
    small = tmp_path / "small.yaml"
    small.write_text(yaml.safe_dump(SMALL))
    settings = [str(ROOT / "configs" / "voc" / f"deeplab_r101_{variant}.yaml"), f"overlay={small}", *photos]
    settings += [f"data.resize={json.dumps(SIDES)}", "data.flip=none", "data.workers=0"]
    if variant == "dconv":
        settings.append("model.backbone.deform.blocks=[res5a, res5b]")
    assert train.main([*settings, "--output", str(tmp_path / "run")]) == 0
    weights = tmp_path / "run" / "last.pth"
    assert test.main([*settings, "--weights", str(weights), "--output", str(tmp_path / "test")]) == 0
    metrics = json.loads((tmp_path / "test" / "metrics.json").read_text())["metrics"]
    print(f"{variant}: mIoU {metrics['mIoU']:.3f}")
    assert metrics["mIoU"] >= 0.95
