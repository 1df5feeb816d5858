"""``dcn-det train``: trains what a config describes."""

from __future__ import annotations

import argparse
from pathlib import Path

from dcn_det.config import load_config, print_config
from dcn_det.engine.signals import Interrupted
from dcn_det.engine.training import Resume, describe, train


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    result = argparse.ArgumentParser(
        prog="train",
        description="Trains the detector that a config describes; with torchrun, on several GPUs or machines.",
        epilog="exit codes: 0 done; 2 a mistake, or training that diverged; 130, 143, 138 stopped by SIGINT, SIGTERM "
        "or SIGUSR1 after saving, to be continued with --resume",
    )
    result.add_argument("config", type=Path, help="YAML file")
    result.add_argument("overrides", nargs="*", metavar="key=value", help="settings laid over the config")
    result.add_argument("--output", type=Path, help="folder of the run (default runs/<config name>)")
    resuming = result.add_mutually_exclusive_group()
    resuming.add_argument("--resume", action="store_true", help="continue the run in the folder")
    resuming.add_argument(
        "--auto-resume", action="store_true", help="continue the run in the folder if there is one, otherwise start it"
    )
    result.add_argument(
        "--stop-at",
        type=int,
        metavar="N",
        help="save and stop after iteration N of the run; --resume goes on",
    )
    result.add_argument("--print-config", action="store_true", help="print every value and its origin, and stop")
    result.add_argument("--dry-run", action="store_true", help="build everything, print sizes and rates, and stop")
    return result


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    args = parser().parse_intermixed_args(argv)
    config = load_config(args.config, *args.overrides)
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
