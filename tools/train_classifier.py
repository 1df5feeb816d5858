"""Runs ``dcn-det train-classifier``, see ``dcn_det/cli/train_classifier.py``."""

from dcn_det.cli.train_classifier import main
from dcn_det.entry import run

if __name__ == "__main__":
    run(main)
