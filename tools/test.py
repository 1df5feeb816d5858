"""Thin wrapper: see ``dcn_det/cli/test.py`` and ``python tools/test.py --help``."""

from dcn_det.cli.test import main
from dcn_det.entry import run

if __name__ == "__main__":
    run(main)
