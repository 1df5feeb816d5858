"""Every detector of the COCO configs learns eight photos by heart, through the tools, plain beside deformable.

It shows that losses, targets, pooling, decoding, suppression and evaluation fit together: what is learnt here is found
only if training and testing agree about every one of them. The detectors are those of the configs, narrower:
the ResNet starts from a trained one of half the width, Aligned-Inception-ResNet from random numbers.

Minutes for each detector, too long for every run of the tests, and therefore left out of them. On one core:

    python -m pytest -m overfit tests/models/test_overfit.py -k rfcn_air
"""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from dcn_det.cli import test, train

ROOT = Path(__file__).resolve().parents[2]
PHOTOS = 8
MOST_OBJECTS = 6
SMALLEST_OBJECT = 40
"""Pixels of the shorter side of a box, in photos of 640 pixels; every object of a photo is so large."""

RESNET = {
    "kind": "resnet50",
    "width": 32,
    "stride_on": "first_1x1",
    "stem_pool": "ceil",
    "preprocess": {"channel_order": "bgr", "mean": [123, 117, 104], "std": [1, 1, 1]},
}
INCEPTION = {"width": 16, "stem_width": 16, "weights": "none", "norm": "bn", "frozen_stages": 0}
RATE = {"resnet": 4e-4, "inception": 1e-3}
ITERATIONS = {"resnet": 320, "inception": 480}

HEADS: dict[str, dict[str, Any]] = {
    "faster_rcnn": {"channels": 64, "hidden": 256, "hidden_init": "he", "negative_iou": [0, 0.5]},
    "rfcn": {"channels": 128, "hidden_init": "he"},
}
CASES = {
    "faster_rcnn_r101": 0.9,
    "faster_rcnn_r101_dcn": 0.9,
    "faster_rcnn_r101_fpn": 0.9,
    "faster_rcnn_r101_fpn_dcn": 0.9,
    "rfcn_r101": 0.9,
    "rfcn_r101_dcn": 0.9,
    "class_aware_rpn_r101": 0.8,
    "class_aware_rpn_r101_dcn": 0.8,
    "faster_rcnn_air": 0.9,
    "faster_rcnn_air_dcn": 0.9,
    "rfcn_air": 0.9,
    "rfcn_air_dcn": 0.9,
}
"""Config, and the AP50 on the photos trained on that it must reach."""


def eight_photos(images: Path, annotations: Path, output: Path) -> list[str]:
    """Writes the annotations of the first photos with few and large objects; returns settings that name them."""
    whole = json.loads(annotations.read_text())
    objects: dict[int, list[dict[str, Any]]] = {}
    for each in whole["annotations"]:
        objects.setdefault(each["image_id"], []).append(each)

    def easy(image: dict[str, Any]) -> bool:
        found = objects.get(image["id"], [])
        large = all(min(each["bbox"][2:]) >= SMALLEST_OBJECT and not each["iscrowd"] for each in found)
        return 0 < len(found) <= MOST_OBJECTS and large

    photos = sorted(filter(easy, whole["images"]), key=lambda image: image["id"])[:PHOTOS]
    kept = [each for image in photos for each in objects[image["id"]]]
    present = {each["category_id"] for each in kept}
    part = {
        "images": photos,
        "annotations": kept,
        "categories": [each for each in whole["categories"] if each["id"] in present],
    }
    output.write_text(json.dumps(part))
    split = f"{{images: {images.name}, annotations: '{output}'}}"
    return [f"data.root={images.parent}", f"data.train={split}", f"data.test={split}"]


def overlay(name: str, weights: Path) -> dict[str, Any]:
    """The settings that make a config small."""
    kind = name.removesuffix("_dcn").rsplit("_r101")[0].removesuffix("_air")
    trunk = "inception" if "_air" in name else "resnet"
    backbone: dict[str, Any] = INCEPTION if trunk == "inception" else RESNET | {"weights": str(weights)}
    rpn: dict[str, Any] = {"channels": 128}
    if name.endswith("fpn_dcn"):
        backbone = backbone | {"deform": {"blocks": ["res3d", "res4f", "res5a", "res5b", "res5c"]}}
    if kind == "class_aware_rpn":
        rpn = {"channels": 256, "hidden_init": "he"}
    if "fpn" not in name:
        rpn["anchors"] = {"scales": [2, 4, 8, 16]}
    return {
        "model": {"backbone": backbone, "rpn": rpn} | ({"head": HEADS[kind]} if kind in HEADS else {}),
        "data": {"resize": {"short_side": 240, "max_side": 360}, "flip": "none", "workers": 0},
        "train": {
            "iterations": ITERATIONS[trunk],
            "batch_size": 2,
            "reference_batch": 2,
            "optimizer": {"kind": "adamw", "lr": RATE[trunk]},
            "schedule": {"kind": "cosine"},
            "warmup": {"kind": "linear", "iterations": 20},
            "clip_norm": 10,
        },
        "device": "cpu",
    }


@pytest.mark.overfit
@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("name", CASES)
def test_eight_photos_are_learnt_by_heart(name: str, shared: Path, tmp_path: Path) -> None:
    data = shared / "data" / "coco_subset"
    photos = eight_photos(
        data / "train2017", data / "annotations" / "instances_train2017_subset.json", tmp_path / "photos.json"
    )
    small = tmp_path / "small.yaml"
    small.write_text(yaml.safe_dump(overlay(name, shared / "weights" / "resnet50_thin.pth")))
    settings = [str(ROOT / "configs" / "coco" / f"{name}.yaml"), f"overlay={small}", *photos]
    assert train.main([*settings, "--output", str(tmp_path / "run")]) == 0
    weights = tmp_path / "run" / "last.pth"
    assert test.main([*settings, "--weights", str(weights), "--output", str(tmp_path / "test")]) == 0
    metrics = json.loads((tmp_path / "test" / "metrics.json").read_text())["metrics"]
    print(f"{name}: AP50 {metrics['AP50']:.3f}, AP {metrics['AP']:.3f}")
    assert metrics["AP50"] >= CASES[name]
