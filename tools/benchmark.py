"""Thin wrapper: see ``dcn_det/cli/benchmark.py`` and ``python tools/benchmark.py --help``."""

from dcn_det.cli.benchmark import main
from dcn_det.entry import run

if __name__ == "__main__":
    run(main)
