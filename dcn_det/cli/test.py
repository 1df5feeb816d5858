"""``tools/test.py``: what a trained detector finds in the test split, and how good that is."""

from __future__ import annotations

import argparse
from pathlib import Path

from dcn_det.config import load_with_origins, print_config
from dcn_det.data.build import build_dataset
from dcn_det.data.voc import read_sets
from dcn_det.engine.testing import run_test, say_on_stderr, say_sample_progress
from dcn_det.errors import UserError
from dcn_det.evaluation.expected import beside_expected
from dcn_det.evaluation.results import write_bytes, write_json
from dcn_det.evaluation.submission import submission_name, write_submission
from dcn_det.evaluation.voc import write_voc_results
from dcn_det.inference.build import load_predictor
from dcn_det.inference.processes import Processes
from dcn_det.structures import Category


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    result = argparse.ArgumentParser(
        prog="test",
        description="Writes detections.json and metrics.json for the test split of a config. Finished images are kept "
        "in the output folder: after a kill, the same command goes on. torchrun --nproc-per-node N shares the images.",
    )
    result.add_argument("config", type=Path, help="YAML file")
    result.add_argument("overrides", nargs="*", metavar="key=value", help="settings laid over the config")
    result.add_argument("--weights", type=Path, required=True, help="checkpoint written by tools/train.py")
    result.add_argument("--output", type=Path, help="folder of the results (default: test/ beside the weights)")
    result.add_argument(
        "--submission",
        metavar="NAME",
        type=submission_name,
        help="also write the zip that COCO's test-dev server takes, under this name of the method",
    )
    return result


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    args = parser().parse_intermixed_args(argv)
    config, origins = load_with_origins(args.config, args.overrides)
    processes = Processes.from_environment()
    dataset = build_dataset(config.data, "test", config.test.resize, progress=say_sample_progress)
    predictor = load_predictor(args.weights, config, processes.device(config.device))
    check_categories(predictor.categories, dataset.categories, args.weights, dataset.index.source)
    output: Path = args.output or args.weights.parent / "test"
    output.mkdir(parents=True, exist_ok=True)

    if processes.first:
        say_on_stderr(f"test on {dataset.index.report}")
    results, metrics = run_test(predictor, dataset, config, output, say_on_stderr, processes)
    if not processes.first:
        return 0
    write_bytes(output / "config.yaml", print_config(config, origins).encode())
    write_json(output / "detections.json", results)
    print(f"detections: '{output / 'detections.json'}'")
    split = config.data.test
    if split is not None and split.sets is not None:
        names = [category.name for category in dataset.categories]
        images = read_sets(Path(config.data.root), split.sets, names, labelled=False)
        write_voc_results(output / "voc", results, images, names, Path(split.sets[0]).stem)
        print(f"VOC result files: '{output / 'voc'}'")
    if args.submission:
        print(f"submission: '{write_submission(output, args.submission, results, dataset.index)}'")
    if metrics is None:
        print(f"no metrics: '{dataset.index.source}' has no annotations")
        return 0
    write_json(output / "metrics.json", metrics.to_plain())
    print(metrics.table(per_class=True))
    print(beside_expected(metrics, config.expected).text, end="")
    return 0


def check_categories(trained: tuple[Category, ...], given: tuple[Category, ...], weights: Path, source: Path) -> None:
    """Raises a UserError unless the detector and the annotations have the same classes."""
    if trained == given:
        return
    ours, theirs = {c.name for c in trained}, {c.name for c in given}
    parts = [
        f"only in the checkpoint: {', '.join(sorted(ours - theirs)[:5])}" if ours - theirs else "",
        f"only in the annotations: {', '.join(sorted(theirs - ours)[:5])}" if theirs - ours else "",
    ]
    difference = "; ".join(part for part in parts if part) or "the same names under other ids"
    raise UserError(f"'{weights}' was trained for other classes than those of '{source}': {difference}")
