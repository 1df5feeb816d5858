"""Runs ``dcn-det convert-dataset``, see ``dcn_det/cli/convert_dataset.py``."""

from dcn_det.cli.convert_dataset import main
from dcn_det.entry import run

if __name__ == "__main__":
    run(main)
