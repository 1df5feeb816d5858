"""Thin wrapper: see ``dcn_det/cli/convert_weights.py`` and ``python tools/convert_weights.py --help``."""

from dcn_det.cli.convert_weights import main
from dcn_det.entry import run

if __name__ == "__main__":
    run(main)
