"""Runs ``dcn-det init``, see ``dcn_det/cli/init.py``."""

from dcn_det.cli.init import main
from dcn_det.entry import run

if __name__ == "__main__":
    run(main)
