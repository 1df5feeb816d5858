"""``dcn-det analyze``: writes a report on results as an HTML page, with its plots as PNG."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dcn_det.cli.arguments import Parser, natural, number
from dcn_det.cli.evaluate import read_ground_truth
from dcn_det.engine.task import PageOptions
from dcn_det.engine.tasks import task_of
from dcn_det.errors import UserError
from dcn_det.files import write_bytes


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    result = Parser(
        prog="dcn-det analyze",
        description="Write report.html, a self-contained page with metrics, plots, confusions and the worst images, "
        "and the plots as PNG files.",
        examples=["dcn-det analyze runs/rfcn/test/detections.json --worst 20"],
    )
    result.add_argument(
        "results", type=Path, help="detections in COCO's results format (JSON), or the folder of dcn-det test"
    )
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
    result.add_argument("--score", type=number, help="minimum score of a confident detection (default: 0.3)")
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
    folder = args.results if args.results.is_dir() else args.results.parent
    beside = folder / "config.yaml"
    if args.ground_truth is None and not beside.is_file():
        raise UserError(f"--ground-truth: required, since '{beside}' does not exist; give annotations or a config")
    config, truth = read_ground_truth(args.ground_truth or beside, None, args.set)
    if args.images is not None and not args.images.is_dir():
        raise UserError(f"--images: folder '{args.images}' does not exist")
    page = task_of(config).page(config, truth, args.results, PageOptions(args.images, args.score, args.worst))
    output: Path = args.output or folder / "report"
    for name, content in page.files.items():
        write_bytes(output / name, content)
    write_bytes(output / "report.html", page.html.encode())
    for warning in page.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"report: '{output / 'report.html'}'")
    return 0
