"""``tools/check_dataset.py``: what is wrong with the data of a config, before a run finds out."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np

from dcn_det.config import Config, load_config
from dcn_det.data.build import build_dataset
from dcn_det.data.check import AnchorCheck, check_coco
from dcn_det.data.check_voc import check_voc
from dcn_det.data.dataset import DetectionDataset
from dcn_det.data.sample import holds_sample, make_sample
from dcn_det.data.sampler import Draw, mix, permutation
from dcn_det.data.voc import VOC_CLASSES
from dcn_det.errors import UserError
from dcn_det.files import write_json
from dcn_det.images import draw_boxes, read_image, sheet, write_image
from dcn_det.models.anchor_head import AnchorHead
from dcn_det.models.build import build_detector
from dcn_det.progress import Progress

AUGMENTED = 3
"""Pictures of each image after augmentation, beside the one before."""


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    result = argparse.ArgumentParser(
        prog="check_dataset",
        description="Reads every image and annotation of a config's data and reports what is wrong.",
        epilog="exit codes: 0 nothing that would stop or shorten training; 1 something; 2 a mistake",
    )
    result.add_argument("config", type=Path, help="YAML file")
    result.add_argument("overrides", nargs="*", metavar="key=value", help="settings laid over the config")
    result.add_argument("--split", choices=["train", "test"], default="train", help="default %(default)s")
    result.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes (default: as many as cores)"
    )
    result.add_argument("--fix", type=Path, metavar="OUT.json", help="write what can be used, in COCO's format")
    result.add_argument("--browse", type=Path, metavar="DIR", help="draw samples before and after augmentation")
    result.add_argument("--samples", type=int, default=16, help="how many to draw (default %(default)s)")
    return result


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    args = parser().parse_intermixed_args(argv)
    config = load_config(args.config, args.overrides)
    root = Path(config.data.root)
    if config.data.kind == "sample" and not holds_sample(root):
        make_sample(root, progress=Progress("sample image"))
    part = config.data.train if args.split == "train" else config.data.test
    if part is None:
        raise UserError(f"data.{args.split} is null: there are no annotations to check")
    progress = Progress("image")
    anchors = _anchors(config)
    if part.sets is not None:
        classes = config.data.classes or VOC_CLASSES
        report = check_voc(root, part.sets, classes, args.split == "train", anchors, args.workers, progress)
    else:
        assert part.annotations is not None and part.images is not None
        report = check_coco(root / part.annotations, root / part.images, anchors, args.workers, progress)
    print(report.text())
    if args.fix:
        write_json(args.fix, report.fixed)
        images, objects = len(report.fixed["images"]), len(report.fixed["annotations"])
        print(f"fixed: '{args.fix}' with {images} of {report.images} images, {objects} of {report.objects} objects")
        if part.sets is not None:
            split = f"data.{args.split}"
            place = args.fix.absolute()
            print(f"to use it: data.kind=coco {split}.images=. {split}.annotations={place} {split}.sets=null")
    if args.browse:
        count = browse(config, args.browse, args.samples)
        print(f"drawn: {count} training images in '{args.browse}' (as it is, then {AUGMENTED} times augmented)")
    return 0 if report.good else 1


def _anchors(config: Config) -> AnchorCheck:
    rpn = getattr(build_detector(config, 1), "rpn", None)
    assert isinstance(rpn, AnchorHead)
    resize = config.data.resize
    return AnchorCheck(rpn.anchors.double().numpy(), rpn.strides, resize.short_side, resize.max_side)


def browse(config: Config, folder: Path, count: int) -> int:
    """Draws some training images with their boxes, as they are and as training sees them; returns how many."""
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
