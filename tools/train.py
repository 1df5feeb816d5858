"""Thin wrapper: see ``dcn_det/cli/train.py`` and ``python tools/train.py --help``."""

from dcn_det.cli.run import run
from dcn_det.cli.train import main

if __name__ == "__main__":
    run(main)
