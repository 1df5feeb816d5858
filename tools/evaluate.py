"""Thin wrapper: see ``dcn_det/cli/evaluate.py`` and ``python tools/evaluate.py --help``."""

from dcn_det.cli.evaluate import main
from dcn_det.entry import run

if __name__ == "__main__":
    run(main)
