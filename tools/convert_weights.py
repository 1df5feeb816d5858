"""Runs ``dcn-det convert-weights``, see ``dcn_det/cli/convert_weights.py``."""

from dcn_det.cli.convert_weights import main
from dcn_det.entry import run

if __name__ == "__main__":
    run(main)
