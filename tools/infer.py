"""Thin wrapper: see ``dcn_det/cli/infer.py`` and ``python tools/infer.py --help``."""

from dcn_det.cli.infer import main
from dcn_det.entry import run

if __name__ == "__main__":
    run(main)
