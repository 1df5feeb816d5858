"""``dcn-det train-classifier``: trains a classifier, whose backbone detectors start from."""

from __future__ import annotations

from dcn_det.cli.train import parser, run_command
from dcn_det.engine.classification import ClassificationTask


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    what = "Train a backbone to classify images in one folder per class, and write it for model.backbone.weights"
    return run_command(ClassificationTask, parser("dcn-det train-classifier", what).parse_intermixed_args(argv))
