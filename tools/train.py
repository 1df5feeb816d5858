"""Thin wrapper: see ``dcn_det/cli/train.py`` and ``python tools/train.py --help``."""

from dcn_det.cli.train import main
from dcn_det.entry import run

if __name__ == "__main__":
    run(main)
