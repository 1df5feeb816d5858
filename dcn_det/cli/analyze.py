"""``dcn-det analyze``: writes a report on a results file as an HTML page, with its plots as PNG."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from dcn_det.cli.arguments import natural, number
from dcn_det.cli.evaluate import read_ground_truth
from dcn_det.config import Config
from dcn_det.errors import UserError
from dcn_det.evaluation.analysis import analyse
from dcn_det.evaluation.measure import evaluation_settings
from dcn_det.evaluation.truth import Truth
from dcn_det.files import write_bytes


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    result = argparse.ArgumentParser(
        prog="dcn-det analyze",
        description="Write report.html, a self-contained page with metrics, curves, histograms, confusions, error "
        "types and the worst images. Its plots are also written as PNG files.",
    )
    result.add_argument("results", type=Path, help="detections in COCO's results format (JSON)")
    result.add_argument(
        "--ground-truth",
        type=Path,
        help="annotations (JSON) or a config (YAML) (default: config.yaml next to the results)",
    )
    result.add_argument("--images", type=Path, help="folder of the images (default: that of the config)")
    result.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="setting that overrides the config"
    )
    result.add_argument("--output", type=Path, help="output folder (default: report/ next to the results)")
    result.add_argument(
        "--score", type=number, default=0.3, help="minimum score of a confident detection (default: %(default)s)"
    )
    result.add_argument(
        "--worst",
        type=natural,
        default=12,
        metavar="N",
        help="number of worst images to draw (default: %(default)s)",
    )
    return result


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    args = parser().parse_args(argv)
    config, truth = _truth(args.results, args.ground_truth, args.set)
    if args.images is not None and not args.images.is_dir():
        raise UserError(f"--images: folder '{args.images}' does not exist")
    results = truth.read(args.results)
    from dcn_det.visualize.plots import plots
    from dcn_det.visualize.report import page

    metrics = truth.measures(results, evaluation_settings(config))
    analysis = analyse(truth.coco, results, args.score, args.worst)
    drawn = plots(analysis)
    folder = args.images or truth.image_folder
    absent: list[str] = []

    def picture(image_id: int) -> np.ndarray | None:
        name = truth.coco.file_names.get(image_id)
        if folder is None or name is None or not (folder / name).is_file():
            absent.append(str(image_id))
            return None
        from dcn_det.images import read_image

        return read_image(folder / name)

    html = page(str(Path(*args.results.resolve().parts[-2:])), metrics, analysis, drawn, truth.coco, results, picture)
    output: Path = args.output or args.results.parent / "report"
    for name, content in drawn.items():
        write_bytes(output / f"{name}.png", content)
    write_bytes(output / "report.html", html.encode())
    if absent:
        print(f"warning: {len(absent)} of the worst images not found; set their folder with --images", file=sys.stderr)
    print(f"report: '{output / 'report.html'}'")
    return 0


def _truth(results: Path, ground_truth: Path | None, overrides: list[str]) -> tuple[Config, Truth]:
    beside = results.parent / "config.yaml"
    if ground_truth is None and not beside.is_file():
        raise UserError(f"--ground-truth: required, since '{beside}' does not exist; give annotations or a config")
    return read_ground_truth(ground_truth or beside, None, overrides)
