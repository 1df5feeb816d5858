"""Thin wrapper: see ``dcn_det/cli/model_info.py`` and ``python tools/model_info.py --help``."""

from dcn_det.cli.model_info import main
from dcn_det.entry import run

if __name__ == "__main__":
    run(main)
