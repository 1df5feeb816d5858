"""``dcn-det infer``: applies a trained model to images; writes pictures and JSON."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dcn_det.cli.arguments import Parser, natural, number
from dcn_det.engine.testing import load_task
from dcn_det.errors import UserError
from dcn_det.files import write_bytes, write_json
from dcn_det.images import SUFFIXES, read_image, sheet, write_image
from dcn_det.progress import Progress

UNREADABLE = 1
"""Exit code if an image could not be read."""


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    result = Parser(
        prog="dcn-det infer",
        description="Detect objects in images, or classify their pixels, and draw the results. The checkpoint contains "
        "config and class names.",
        notes="exit codes: 0 all images were read; 1 some could not be read; 2 invalid arguments",
        examples=["dcn-det infer --weights runs/rfcn/last.pth --output pictures photos/"],
    )
    result.add_argument("images", nargs="+", type=Path, help="image files or folders of images")
    result.add_argument(
        "--weights", type=Path, required=True, help="checkpoint from training or dcn-det convert-weights"
    )
    result.add_argument("--output", type=Path, required=True, help="output folder for pictures and results (JSON)")
    result.add_argument(
        "--score", type=number, help="minimum score to draw (default: 0.5 for detections, 0 for pixels)"
    )
    result.add_argument("--sheet", type=natural, default=0, metavar="N", help="also draw the first N on sheet.jpg")
    result.add_argument("--config", type=Path, help="YAML file to use instead of the config in the checkpoint")
    result.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    return result


def find_images(paths: Sequence[Path]) -> list[Path]:
    """Returns the given image files, and the images in the given folders, sorted within each folder.

    Raises:
        UserError: a path does not exist, or a folder contains no images.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(item for item in path.iterdir() if _is_image(item))
            if not inside:
                raise UserError(f"folder '{path}' contains no images ({', '.join(sorted(SUFFIXES))})")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise UserError(f"image '{path}' does not exist")
    return found


def _is_image(path: Path) -> bool:
    # macOS adds a file "._name.jpg" with attributes next to each image on foreign disks.
    return path.suffix.lower() in SUFFIXES and not path.name.startswith("._")


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    args = parser().parse_args(argv)
    images = find_images(args.images)
    task, predictor = load_task(args.weights, args.device, args.config)
    args.output.mkdir(parents=True, exist_ok=True)
    records: list[dict[str, Any]] = []
    cells: list[np.ndarray] = []
    used: set[str] = set()
    unreadable = 0
    progress = Progress("image")
    for index, path in enumerate(images):
        try:
            image = read_image(path, upright=True)
        except UserError as error:
            unreadable += 1
            print(f"warning: {error}", file=sys.stderr)
            continue
        result = predictor(image)
        picture = task.draw(image, result, args.score)
        target = args.output / unique_name(path, used)
        write_image(target, picture)
        for ending, content in task.files(result).items():
            write_bytes(target.with_name(f"{target.stem}{ending}"), content)
        if len(cells) < args.sheet:
            cells.append(picture)
        records.append({"image": str(path), **task.record(result)})
        progress(index + 1, len(images))
    write_json(args.output / task.results_file, records)
    if cells:
        write_image(args.output / "sheet.jpg", sheet(cells, columns=min(4, len(cells))))
    print(f"pictures and {task.results_file}: '{args.output}'")
    if unreadable:
        print(f"warning: {unreadable} of {len(images)} images could not be read", file=sys.stderr)
    return UNREADABLE if unreadable else 0


def unique_name(path: Path, used: set[str]) -> str:
    """Returns a JPEG name for ``path`` that is not in ``used``, and adds it."""
    name, number = f"{path.stem}.jpg", 1
    while name in used:
        number += 1
        name = f"{path.stem}_{number}.jpg"
    used.add(name)
    return name
