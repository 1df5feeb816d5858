"""``dcn-det train``: trains the model that a config describes."""

from __future__ import annotations

import argparse
from pathlib import Path

from dcn_det.cli.arguments import Parser, add_config, positive
from dcn_det.config import load_any, print_config
from dcn_det.engine.signals import Interrupted
from dcn_det.engine.training import Resume, describe, train


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    result = Parser(
        prog="dcn-det train",
        description="Train the detector, classifier or segmentation network that a config describes; with torchrun, on "
        "several GPUs or machines.",
        notes="exit codes: 0 done; 2 invalid arguments or config, or diverged; 130, 143, 138 stopped by SIGINT, "
        "SIGTERM or SIGUSR1 after saving (continue with --resume)",
        examples=[
            "dcn-det train configs/sample/rfcn.yaml --output runs/rfcn",
            "dcn-det train configs/sample/rfcn.yaml train.epochs=2 --dry-run",
            "dcn-det train configs/sample/rfcn.yaml --output runs/rfcn --resume",
        ],
    )
    add_config(result)
    result.add_argument("--output", type=Path, help="folder of the run (default: runs/<config name>)")
    resuming = result.add_mutually_exclusive_group()
    resuming.add_argument("--resume", action="store_true", help="continue the run in the folder")
    resuming.add_argument(
        "--auto-resume", action="store_true", help="continue the run in the folder, or start it if there is none"
    )
    result.add_argument(
        "--stop-at",
        type=positive,
        metavar="N",
        help="save and stop after iteration N; --resume continues",
    )
    result.add_argument("--print-config", action="store_true", help="print every value with its origin, and exit")
    result.add_argument(
        "--dry-run", action="store_true", help="build everything, print sizes and learning rate, and exit"
    )
    return result


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    args = parser().parse_intermixed_args(argv)
    config = load_any(args.config, *args.overrides)
    if args.print_config:
        print(print_config(config), end="")
        return 0
    if args.dry_run:
        if text := describe(config):
            print(text)
        return 0
    resume: Resume = "yes" if args.resume else "auto" if args.auto_resume else "no"
    try:
        train(config, args.output, resume=resume, stop_at=args.stop_at)
    except Interrupted as stop:
        return 128 + stop.signum
    return 0
