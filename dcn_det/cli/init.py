"""``dcn-det init``: writes a config for a folder of annotated images."""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path

from dcn_det.cli.arguments import Parser
from dcn_det.config import load_config
from dcn_det.data.layouts import FINDERS
from dcn_det.distributed import resolve_device
from dcn_det.errors import UserError
from dcn_det.files import write_text
from dcn_det.reproduce.steps import configs_folder
from dcn_det.starting.data import find_data
from dcn_det.starting.plan import default_base, make_plan


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    result = Parser(
        prog="dcn-det init",
        description="Look at a folder of annotated images and write a config that trains on them: format, splits, "
        "classes, anchors, input size, length and batch size. Writes this file only; images and annotations are used "
        "where they are.",
        examples=["dcn-det init photos/flowers --output flowers.yaml"],
    )
    result.add_argument("folder", type=Path, metavar="DIR", help="folder of images and annotations")
    result.add_argument(
        "--format",
        choices=["auto", *FINDERS],
        default="auto",
        help="format of the annotations: COCO's JSON, Pascal VOC's XML, YOLO's text files (default: the one with the "
        "most images)",
    )
    result.add_argument(
        "--base", type=Path, metavar="CONFIG", help="config of a detector to start from (default: by the device)"
    )
    result.add_argument("--output", type=Path, metavar="FILE.yaml", help="config to write (default: DIR's name.yaml)")
    result.add_argument("--force", action="store_true", help="overwrite the config")
    return result


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    args = parser().parse_args(argv)
    output = args.output or Path(f"{Path(os.path.normpath(args.folder.absolute())).name or 'data'}.yaml")
    if output.suffix.lower() not in (".yaml", ".yml"):
        raise UserError(f"--output: '{output}', expected a file name that ends with .yaml")
    if output.is_dir() or (output.exists() and not args.force):
        raise UserError(f"--output: '{output}' exists; add --force to overwrite it, or give another name")
    if args.base is not None:
        load_config(args.base)
    data = find_data(args.folder, args.format)
    print("\n".join(data.lines))
    base, why = args.base, "as given"
    if base is None:
        default = default_base(resolve_device("auto"))
        base, why = configs_folder() / default.file, default.why
    plan = make_plan(data, base)
    lines = (f"base      {base}: {why}", *plan.lines)
    print("\n".join(lines))
    write_text(output, plan.text(output, (*data.lines, *lines)))
    print(f"written   {output}")
    config, weights = shlex.quote(str(output)), shlex.quote(f"runs/{output.stem}/last.pth")
    for split in data.problems:
        print(f"\nFirst see what cannot be used: dcn-det check-dataset {config} --split {split}")
    print(f"\nNext:\n  dcn-det train {config}")
    print(f"  dcn-det infer --weights {weights} --output pictures {shlex.quote(str(data.pictures))}")
    return 0
