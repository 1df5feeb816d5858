"""``dcn-det infer``: applies a trained model to images and videos; writes pictures and results."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from dcn_det.cli.arguments import Parser, natural, number, place, positive
from dcn_det.engine.outputs import DEFAULT, Outputs
from dcn_det.engine.testing import load_task
from dcn_det.errors import UserError
from dcn_det.inference.sources import Shot, Source, find_sources
from dcn_det.progress import Progress

UNREADABLE = 1
"""Exit code if an image could not be read."""


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    result = Parser(
        prog="dcn-det infer",
        description="Detect objects in images and videos, or classify their pixels, and draw the results. The "
        "checkpoint contains config and class names.",
        notes="exit codes: 0 all images were read; 1 some could not be read; 2 invalid arguments",
        examples=["dcn-det infer --weights runs/rfcn/last.pth --output pictures photos/"],
    )
    result.add_argument(
        "images",
        nargs="+",
        type=place,
        metavar="IMAGE",
        help="image or video file, folder of images, quoted pattern ('photos/*.jpg'), text file that lists images, "
        "address of an image (https://...), or number of a camera, which runs until Ctrl-C",
    )
    result.add_argument(
        "--weights", type=Path, required=True, help="checkpoint from training or dcn-det convert-weights"
    )
    result.add_argument("--output", type=Path, required=True, help="output folder for pictures and results")
    result.add_argument(
        "--write",
        type=kinds,
        default=DEFAULT,
        metavar="KIND,...",
        help="what to write: pictures (and annotated videos), json, csv; as a start for annotation: coco, yolo, "
        f"labelme, labelstudio (default: {','.join(DEFAULT)})",
    )
    result.add_argument(
        "--score",
        type=number,
        help="minimum score of what is drawn or becomes an annotation (default: 0.5 for detections, 0 for pixels)",
    )
    result.add_argument("--recursive", action="store_true", help="include the images in subfolders")
    result.add_argument("--every", type=positive, default=1, metavar="N", help="use every N-th frame of videos")
    result.add_argument("--sheet", type=natural, default=0, metavar="N", help="also draw the first N on sheet.jpg")
    result.add_argument("--config", type=Path, help="YAML file to use instead of the config in the checkpoint")
    result.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    return result


def kinds(text: str) -> tuple[str, ...]:
    """Parses a list of names, separated by commas."""
    found = tuple(part.strip() for part in text.split(","))
    if not all(found):
        raise argparse.ArgumentTypeError(f"'{text[:40]}', expected names separated by commas")
    return found


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    args = parser().parse_args(argv)
    sources = find_sources(args.images, args.recursive)
    task, predictor = load_task(args.weights, args.device, args.config)
    outputs = Outputs(task, args.output, args.write, args.score, args.sheet)
    counts = [source.count(args.every) or 1 for source in sources]
    progress, done, failed = Progress("image"), 0, Failures()
    try:
        for source, count in zip(sources, counts):
            end = done + count
            for shot in failed.shots(source, args.every):
                outputs.add(shot, predictor(shot.image))
                done += 1
                if done < end:
                    progress(done, sum(counts))
            done = end
            progress(done, sum(counts))
    finally:  # also after Ctrl-C
        outputs.close()
    print(f"{', '.join(args.write)}: '{args.output}'")
    if failed.count:
        print(f"warning: {failed.count} of {len(sources)} images could not be read", file=sys.stderr)
    return UNREADABLE if failed.count else 0


class Failures:
    """Counts and reports what cannot be read."""

    count = 0

    def shots(self, source: Source, every: int) -> Iterator[Shot]:
        """Yields the images of a source, up to the first that cannot be read."""
        try:
            yield from source.shots(every)
        except UserError as error:
            self.count += 1
            print(f"warning: {error}", file=sys.stderr)
