"""``dcn-det test``: applies a trained model to the test split of a config and measures the results."""

from __future__ import annotations

import argparse
from pathlib import Path

from dcn_det.cli.arguments import Parser, add_config
from dcn_det.config import load_any
from dcn_det.engine.testing import test
from dcn_det.evaluation.expected import beside_expected
from dcn_det.evaluation.submission import submission_name


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    result = Parser(
        prog="dcn-det test",
        description="Write results (detections.json, or masks as PNG files) and metrics.json for the test split of a "
        "config. torchrun shares the images among processes. Finished images of detectors are stored in the output "
        "folder: after a kill, the same command continues.",
        examples=["dcn-det test configs/sample/rfcn.yaml --weights runs/rfcn/last.pth"],
    )
    add_config(result)
    result.add_argument(
        "--weights", type=Path, required=True, help="checkpoint from training or dcn-det convert-weights"
    )
    result.add_argument("--output", type=Path, help="output folder (default: test/ next to the weights)")
    result.add_argument(
        "--submission",
        metavar="NAME",
        type=submission_name,
        help="also write the files for the server of the data set (COCO's test-dev, Pascal VOC, Cityscapes), with this "
        "name of the method",
    )
    return result


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    args = parser().parse_intermixed_args(argv)
    config = load_any(args.config, *args.overrides)
    result = test(config, args.weights, args.output, submission=args.submission)
    if result is None:
        return 0
    for what, path in result.files.items():
        print(f"{what}: '{path}'")
    if result.metrics is None:
        print("metrics: none, the split has no annotations")
        return 0
    print(result.metrics.table(per_class=True))
    print(beside_expected(result.metrics, config.expected, config.data.test_title).text, end="")
    return 0
