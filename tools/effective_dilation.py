"""Runs ``dcn-det effective-dilation``, see ``dcn_det/cli/effective_dilation.py``."""

from dcn_det.cli.effective_dilation import main
from dcn_det.entry import run

if __name__ == "__main__":
    run(main)
