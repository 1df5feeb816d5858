"""``dcn-det env``: prints versions, devices and compiled operators, for bug reports."""

from __future__ import annotations

import argparse

from dcn_det.cli.arguments import Parser
from dcn_det.env import report


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    return Parser(
        prog="dcn-det env",
        description="Print versions, devices and the kernels that serve each operator, for bug reports.",
        examples=["dcn-det env"],
    )


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    parser().parse_args(argv)
    print(report())
    return 0
