"""``dcn-det check-dataset``: checks the data of a config before training."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from dcn_det.cli.arguments import Parser, add_config, natural
from dcn_det.cli.dataset_checks import AUGMENTED, FixableCheck, open_check
from dcn_det.config import load_any
from dcn_det.errors import UserError
from dcn_det.progress import Progress


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    result = Parser(
        prog="dcn-det check-dataset",
        description="Read every image and annotation of a config's data and report problems.",
        notes="exit codes: 0 nothing stops or shortens training; 1 something does; 2 invalid arguments or config",
        examples=["dcn-det check-dataset configs/sample/rfcn.yaml --browse pictures"],
    )
    add_config(result)
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
    check = open_check(load_any(args.config, *args.overrides), args.split)
    if args.fix and not isinstance(check, FixableCheck):
        raise UserError("--fix: only annotations of boxes can be repaired; correct or remove the files that are listed")
    report = check.report(args.workers, Progress("image"))
    print(report.text())
    if args.fix and isinstance(check, FixableCheck):
        written, use = check.fix(args.fix)
        print(f"fixed: {written}\n{use}")
    if args.browse:
        count = check.browse(args.browse, args.samples)
        print(f"drawn: {count} training images in '{args.browse}' (each unchanged and with {AUGMENTED} augmentations)")
    return 0 if report.good else 1
