"""Runs ``dcn-det receptive-field``, see ``dcn_det/cli/receptive_field.py``."""

from dcn_det.cli.receptive_field import main
from dcn_det.entry import run

if __name__ == "__main__":
    run(main)
