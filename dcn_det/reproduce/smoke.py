"""Small settings and data for ``--smoke``: every row of a table from end to end within minutes on a CPU."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from dcn_det.config import Config, RunConfig
from dcn_det.config.data import VocDataConfig
from dcn_det.config.segmentation_data import MaskDataConfig
from dcn_det.data.sample.compose import CLASSES
from dcn_det.data.sample.make import make_sample
from dcn_det.data.sample.masks import make_sample_masks

TRAIN_IMAGES, TEST_IMAGES = 12, 4
SIDE = 96
"""Pixels of both sides of an image; further views of multi-scale testing differ by half of it."""


def overrides(config: RunConfig, folder: Path, own_data: bool) -> list[str]:
    """Returns settings that reduce a config to a narrow network, few iterations and small images.

    Everything that distinguishes the rows of a table stays: detector, depth, dilation, deformable layers, pooling,
    number of views, box averaging.

    Args:
        config: the config of a row.
        folder: where :func:`write_data` writes the sample set.
        own_data: keep the images of the config.
    """
    settings = [
        "model.backbone.width=8",
        "model.backbone.stem_width=8",
        f"model.backbone.norm={'bn' if getattr(config.model.backbone, 'norm', '') == 'bn' else 'gn'}",
        "model.backbone.frozen_stages=0",
        "model.backbone.weights=none",
        f"data.resize={{short_side: {SIDE}, max_side: {SIDE}}}",
        "data.workers=0",
        "train.epochs=null",
        "train.iterations=2",
        "train.batch_size=2",
        "train.reference_batch=2",
        "train.checkpoint_every=1",
        "train.log_every=1",
        "train.warmup.kind=none",
        "test.batch_size=4",
    ]
    rpn = ["model.rpn.batch_per_image=32", "model.rpn.pre_nms=100", "model.rpn.anchors.scales=[1,2,4]"]
    settings += {
        "deeplab": ["model.channels=16"],
        "class_aware_rpn": rpn,
        "faster_rcnn": [
            *rpn,
            "model.rpn.channels=16",
            "model.rpn.post_nms=20",
            "model.head.channels=8",
            "model.head.hidden=16",
        ],
        "rfcn": [*rpn, "model.rpn.channels=16", "model.rpn.post_nms=20", "model.head.channels=16"],
    }[config.model.kind]
    if isinstance(config, Config) and config.test.scales is not None:
        sides = [SIDE // 2 + SIDE // 4 * number for number in range(len(config.test.scales))]
        settings.append(f"test.scales=[{', '.join(f'{{short_side: {side}, max_side: {side}}}' for side in sides)}]")
    return settings if own_data else settings + list(_sample_data(config, folder))


def _sample_data(config: RunConfig, folder: Path) -> Iterator[str]:
    if isinstance(config.data, VocDataConfig):
        yield f"data.root={folder / 'voc'}"
        yield f"data.classes={json.dumps(CLASSES)}"
        for split in ("train", "test"):
            yield f"data.{split}.sets=[SAMPLE/ImageSets/Main/{split}.txt]"
        yield "data.test.without=[]"
        yield "data.corners=inclusive"
        return
    if isinstance(config.data, MaskDataConfig):
        yield "data.kind=sample_masks"
        yield f"data.root={folder / 'masks'}"
        return
    yield "data.kind=sample"
    yield f"data.root={folder / 'sample'}"
    yield "data.train={images: train, annotations: annotations/train.json}"
    yield "data.test={images: val, annotations: annotations/val.json}"


def write_data(folder: Path) -> None:
    """Writes a small sample set in COCO's and in Pascal VOC's format and with masks, unless it is there.

    Raises:
        UserError: see ``make_sample``.
    """
    sample = make_sample(folder / "sample", TRAIN_IMAGES, TEST_IMAGES)
    make_sample_masks(folder / "masks", TRAIN_IMAGES, TEST_IMAGES)
    if (folder / "voc").exists():
        return
    staging = folder / f".voc-{uuid.uuid4().hex}"
    try:
        for split, name in (("train", "train"), ("test", "val")):
            _write_voc(staging / "SAMPLE", sample, split, name)
        staging.rename(folder / "voc")
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _write_voc(root: Path, sample: Path, split: str, name: str) -> None:
    """Writes one split of the sample set in Pascal VOC's format: 1-based inclusive corners."""
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / part).mkdir(parents=True, exist_ok=True)
    truth = json.loads((sample / "annotations" / f"{name}.json").read_text(encoding="utf-8"))
    stems = []
    for image in truth["images"]:
        stems.append(f"{image['id']:06d}")
        shutil.copyfile(sample / name / image["file_name"], root / "JPEGImages" / f"{stems[-1]}.jpg")
        document = ElementTree.Element("annotation")
        ElementTree.SubElement(document, "filename").text = f"{stems[-1]}.jpg"
        size = ElementTree.SubElement(document, "size")
        for key, value in (("width", image["width"]), ("height", image["height"]), ("depth", 3)):
            ElementTree.SubElement(size, key).text = str(value)
        for entry in truth["annotations"]:
            if entry["image_id"] == image["id"]:
                _add_object(document, CLASSES[entry["category_id"] - 1], *entry["bbox"])
        ElementTree.ElementTree(document).write(root / "Annotations" / f"{stems[-1]}.xml")
    (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(stems) + "\n")


def _add_object(document: ElementTree.Element, name: str, x: float, y: float, width: float, height: float) -> None:
    item = ElementTree.SubElement(document, "object")
    ElementTree.SubElement(item, "name").text = name
    ElementTree.SubElement(item, "difficult").text = "0"
    box = ElementTree.SubElement(item, "bndbox")
    for key, value in (("xmin", x + 1), ("ymin", y + 1), ("xmax", x + width), ("ymax", y + height)):
        ElementTree.SubElement(box, key).text = str(value)
