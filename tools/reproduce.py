"""Runs ``dcn-det reproduce``, see ``dcn_det/cli/reproduce.py``."""

from dcn_det.cli.reproduce import main
from dcn_det.entry import run

if __name__ == "__main__":
    run(main)
