"""Runs ``dcn-det analyze``, see ``dcn_det/cli/analyze.py``."""

from dcn_det.cli.analyze import main
from dcn_det.entry import run

if __name__ == "__main__":
    run(main)
