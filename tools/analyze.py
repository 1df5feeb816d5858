"""Thin wrapper: see ``dcn_det/cli/analyze.py`` and ``python tools/analyze.py --help``."""

from dcn_det.cli.analyze import main
from dcn_det.entry import run

if __name__ == "__main__":
    run(main)
