"""Runs ``dcn-det sampling``, see ``dcn_det/cli/sampling.py``."""

from dcn_det.cli.sampling import main
from dcn_det.entry import run

if __name__ == "__main__":
    run(main)
