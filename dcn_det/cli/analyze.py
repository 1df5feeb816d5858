"""``tools/analyze.py``: a report on a results file, as one HTML page and its plots as PNG."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from dcn_det.cli.evaluate import read_truth
from dcn_det.config import Config
from dcn_det.errors import UserError
from dcn_det.evaluation.analysis import analyse
from dcn_det.evaluation.truth import Truth
from dcn_det.files import write_bytes


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    result = argparse.ArgumentParser(
        prog="analyze",
        description="Writes report.html: metrics, curves, histograms, confusions, kinds of errors, worst images. "
        "The page holds everything it shows. Its plots are also written as PNG files.",
    )
    result.add_argument("results", type=Path, help="detections in COCO's results format (JSON)")
    result.add_argument(
        "--ground-truth",
        type=Path,
        help="annotations (JSON) or a config (YAML); default: config.yaml beside the results, left by tools/test.py",
    )
    result.add_argument("--images", type=Path, help="folder of the images (default: the config's)")
    result.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="a setting laid over the config"
    )
    result.add_argument("--output", type=Path, help="folder to write to (default: report/ beside the results)")
    result.add_argument("--score", type=float, default=0.3, help="least score of a confident detection (%(default)s)")
    result.add_argument("--worst", type=int, default=12, metavar="N", help="images to draw (default %(default)s)")
    return result


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    args = parser().parse_args(argv)
    config, truth = _truth(args.results, args.ground_truth, args.set)
    if args.images is not None and not args.images.is_dir():
        raise UserError(f"--images: no folder '{args.images}'")
    results = truth.read(args.results)
    from dcn_det.visualize.plots import plots
    from dcn_det.visualize.report import page

    metrics = truth.measures(results, config.evaluation)
    analysis = analyse(truth.coco, results, args.score, args.worst)
    drawn = plots(analysis)
    folder = args.images or truth.image_folder
    absent: list[str] = []

    def picture(image_id: int) -> np.ndarray | None:
        name = truth.coco.file_names.get(image_id)
        if folder is None or name is None or not (folder / name).is_file():
            absent.append(str(image_id))
            return None
        from dcn_det.data.transforms import read_image

        return read_image(folder / name)

    html = page(str(Path(*args.results.resolve().parts[-2:])), metrics, analysis, drawn, truth.coco, results, picture)
    output: Path = args.output or args.results.parent / "report"
    for name, content in drawn.items():
        write_bytes(output / f"{name}.png", content)
    write_bytes(output / "report.html", html.encode())
    if absent:
        print(f"warning: {len(absent)} worst images are not at hand; --images names their folder", file=sys.stderr)
    print(f"report: '{output / 'report.html'}'")
    return 0


def _truth(results: Path, ground_truth: Path | None, overrides: list[str]) -> tuple[Config, Truth]:
    beside = results.parent / "config.yaml"
    if ground_truth is None and not beside.is_file():
        raise UserError(f"--ground-truth: not given, and there is no '{beside}'; name annotations or a config")
    return read_truth(ground_truth or beside, None, overrides)
