"""Runs ``dcn-det evaluate``, see ``dcn_det/cli/evaluate.py``."""

from dcn_det.cli.evaluate import main
from dcn_det.entry import run

if __name__ == "__main__":
    run(main)
