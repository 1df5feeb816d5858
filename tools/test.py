"""Runs ``dcn-det test``, see ``dcn_det/cli/test.py``."""

from dcn_det.cli.test import main
from dcn_det.entry import run

if __name__ == "__main__":
    run(main)
