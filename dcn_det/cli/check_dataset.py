"""``dcn-det check-dataset``: checks the data of a config before training."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np

from dcn_det.cli.arguments import natural
from dcn_det.config import Config, load_config
from dcn_det.data.anchor_check import AnchorCheck
from dcn_det.data.build import build_dataset
from dcn_det.data.check import check_split, fixed_document
from dcn_det.data.dataset import DetectionDataset
from dcn_det.data.formats import open_split
from dcn_det.data.sampler import Draw, mix, permutation
from dcn_det.files import write_json
from dcn_det.images import draw_boxes, read_image, sheet, write_image
from dcn_det.models.anchor_head import AnchorHead
from dcn_det.models.build import build_detector
from dcn_det.progress import Progress

AUGMENTED = 3
"""Augmented versions to draw of each image."""


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    result = argparse.ArgumentParser(
        prog="dcn-det check-dataset",
        description="Read every image and annotation of a config's data and report problems.",
        epilog="exit codes: 0 nothing stops or shortens training; 1 something does; 2 invalid arguments or config",
    )
    result.add_argument("config", type=Path, help="YAML file")
    result.add_argument("overrides", nargs="*", metavar="key=value", help="settings that override the config")
    result.add_argument(
        "--split", choices=["train", "test"], default="train", help="split to check (default: %(default)s)"
    )
    result.add_argument(
        "--workers",
        type=natural,
        default=os.cpu_count() or 1,
        help="number of processes (default: number of cores)",
    )
    result.add_argument("--fix", type=Path, metavar="OUT.json", help="write the usable part in COCO format")
    result.add_argument(
        "--browse", type=Path, metavar="DIR", help="draw samples before and after augmentation to this folder"
    )
    result.add_argument("--samples", type=natural, default=16, help="number of samples to draw (default: %(default)s)")
    return result


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    args = parser().parse_intermixed_args(argv)
    config = load_config(args.config, *args.overrides)
    split = open_split(config.data, args.split, Progress("sample image"))
    report = check_split(split, _anchors(config), args.workers, Progress("image"))
    print(report.text())
    if args.fix:
        fixed = fixed_document(split, report)
        write_json(args.fix, fixed)
        images, objects = len(fixed["images"]), len(fixed["annotations"])
        print(f"fixed: '{args.fix}' with {images} of {report.images} images, {objects} of {report.objects} objects")
        print(f"to use it: {' '.join(split.settings_of_fixed(args.fix))}")
    if args.browse:
        count = browse(config, args.browse, args.samples)
        print(f"drawn: {count} training images in '{args.browse}' (each unchanged and with {AUGMENTED} augmentations)")
    return 0 if report.good else 1


def _anchors(config: Config) -> AnchorCheck | None:
    rpn = getattr(build_detector(config, 1), "rpn", None)
    if not isinstance(rpn, AnchorHead):
        return None
    resize = config.data.resize
    return AnchorCheck(rpn.anchors.double().numpy(), rpn.strides, resize.short_side, resize.max_side)


def browse(config: Config, folder: Path, count: int) -> int:
    """Draws training images with their boxes, unchanged and augmented; returns the number of images."""
    dataset = build_dataset(config.data, "train")
    folder.mkdir(parents=True, exist_ok=True)
    names = [category.name for category in dataset.categories]
    chosen = permutation(len(dataset), config.seed)[:count]
    for i in chosen.tolist():
        pictures = [_before(dataset, i, names)]
        for epoch in range(AUGMENTED):
            image_id = int(dataset.index.image_ids[i])
            flipped = config.data.flip != "none" and epoch % 2 == 1
            pixels, _, target = dataset[Draw(i, flipped, mix(config.seed, epoch, image_id))]
            assert target is not None
            pictures.append(
                draw_boxes(pixels.permute(1, 2, 0).numpy(), target.boxes.numpy(), target.labels.tolist(), names)
            )
        name = Path(dataset.index.file_name(i)).stem
        write_image(folder / f"{name}.jpg", sheet(pictures, 2))
    return len(chosen)


def _before(dataset: DetectionDataset, i: int, names: list[str]) -> np.ndarray:
    image = read_image(dataset.index.folder / dataset.index.file_name(i))
    boxes, labels = dataset.index.objects(i)
    return draw_boxes(image, boxes, labels.tolist(), names)
