"""Runs ``dcn-det infer``, see ``dcn_det/cli/infer.py``."""

from dcn_det.cli.infer import main
from dcn_det.entry import run

if __name__ == "__main__":
    run(main)
