"""The same as ``tools/train.py``."""

from dcn_det.cli.train import main
from dcn_det.entry import run

if __name__ == "__main__":
    run(main)
