"""Runs ``dcn-det check-dataset``, see ``dcn_det/cli/check_dataset.py``."""

from dcn_det.cli.check_dataset import main
from dcn_det.entry import run

if __name__ == "__main__":
    run(main)
