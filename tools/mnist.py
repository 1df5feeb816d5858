"""Runs ``dcn-det mnist``, see ``dcn_det/cli/mnist.py``."""

from dcn_det.cli.mnist import main
from dcn_det.entry import run

if __name__ == "__main__":
    run(main)
