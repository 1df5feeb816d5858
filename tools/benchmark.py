"""Runs ``dcn-det benchmark``, see ``dcn_det/cli/benchmark.py``."""

from dcn_det.cli.benchmark import main
from dcn_det.entry import run

if __name__ == "__main__":
    run(main)
