"""``tools/evaluate.py``: COCO metrics of a results file."""

from __future__ import annotations

import argparse
from pathlib import Path

from dcn_det.evaluation.coco import evaluate, load_ground_truth, load_results, write_json


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    result = argparse.ArgumentParser(
        prog="evaluate", description="Computes COCO's 12 metrics of a results file with pycocotools."
    )
    result.add_argument("ground_truth", type=Path, help="annotations in COCO format (JSON)")
    result.add_argument("results", type=Path, help="list of detections in COCO's results format (JSON)")
    result.add_argument("--iou-type", choices=("bbox", "segm"), default="bbox", help="default %(default)s")
    result.add_argument("--per-class", action="store_true", help="also print the AP of each class")
    result.add_argument("--json", type=Path, metavar="OUT", help="also write the metrics to this file")
    return result


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    args = parser().parse_args(argv)
    truth = load_ground_truth(args.ground_truth)
    results = load_results(args.results, truth, args.iou_type)
    metrics = evaluate(truth, results, args.iou_type)
    print(metrics.table(per_class=args.per_class))
    if args.json:
        write_json(args.json, metrics.to_plain())
    return 0
