"""Runs ``dcn-det download``, see ``dcn_det/cli/download.py``."""

from dcn_det.cli.download import main
from dcn_det.entry import run

if __name__ == "__main__":
    run(main)
