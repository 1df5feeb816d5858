"""Runs ``dcn-det model-info``, see ``dcn_det/cli/model_info.py``."""

from dcn_det.cli.model_info import main
from dcn_det.entry import run

if __name__ == "__main__":
    run(main)
