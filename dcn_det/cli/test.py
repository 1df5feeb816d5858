"""``tools/test.py``: what a trained detector finds in the test split, and how good that is."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from dcn_det import distributed
from dcn_det.config import Config, Origins, load_with_origins, print_config, to_plain
from dcn_det.data.build import build_dataset
from dcn_det.distributed import Processes
from dcn_det.engine.testing import run_test
from dcn_det.errors import UserError
from dcn_det.evaluation.expected import beside_expected
from dcn_det.evaluation.submission import submission_name, write_submission
from dcn_det.evaluation.truth import truth_class
from dcn_det.files import write_bytes, write_json
from dcn_det.heap import keep_freed_memory
from dcn_det.inference.build import restore_predictor
from dcn_det.inference.predictor import resolve_device
from dcn_det.progress import Progress, say_on_stderr
from dcn_det.structures import Category
from dcn_det.weights import checkpoint
from dcn_det.weights.settings import describe, differences, get, laid_over, of_checkpoint

PATIENCE = timedelta(days=7)
"""How long a process waits for the slowest one."""


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    result = argparse.ArgumentParser(
        prog="test",
        description="Writes detections.json and metrics.json for the test split of a config. Finished images are kept "
        "in the output folder: after a kill, the same command goes on. torchrun --nproc-per-node N shares the images.",
    )
    result.add_argument("config", type=Path, help="YAML file")
    result.add_argument("overrides", nargs="*", metavar="key=value", help="settings laid over the config")
    result.add_argument(
        "--weights", type=Path, required=True, help="checkpoint, from training or tools/convert_weights.py"
    )
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
    keep_freed_memory()
    processes, device = distributed.start(resolve_device(config.device), config.device, PATIENCE)
    if not processes.main:
        warnings.simplefilter("ignore")  # the main process gives the same ones
    code = _run(args, config, origins, processes, device)
    distributed.stop()
    return code


def _run(args: argparse.Namespace, config: Config, origins: Origins, processes: Processes, device: torch.device) -> int:
    state = checkpoint.load(args.weights)
    given, config = config, with_settings_of_weights(config, state, args.weights)
    changed = differences(given, of_checkpoint(state["config"]))
    origins = {**origins, **dict.fromkeys(changed, f"'{args.weights}'")}
    with processes.main_first():
        dataset = build_dataset(config.data, "test", config.test.resize, progress=Progress("sample image"))
    predictor = restore_predictor(state, args.weights, config, str(device))
    check_categories(predictor.categories, dataset.categories, args.weights, dataset.index.source)
    output: Path = args.output or args.weights.parent / "test"
    output.mkdir(parents=True, exist_ok=True)

    if processes.main:
        say_on_stderr(f"test on {dataset.index.report}")
    results, metrics = run_test(predictor, dataset, config, output, say_on_stderr, processes)
    if not processes.main:
        return 0
    write_bytes(output / "config.yaml", print_config(config, origins).encode())
    write_json(output / "detections.json", results)
    print(f"detections: '{output / 'detections.json'}'")
    written = truth_class(config.data).write_results(output, results, dataset.index, config.data)
    if written is not None:
        print(f"result files: '{written}'")
    if args.submission:
        print(f"submission: '{write_submission(output, args.submission, results, dataset.index)}'")
    if metrics is None:
        print(f"no metrics: '{dataset.index.source}' has no annotations")
        return 0
    write_json(output / "metrics.json", metrics.to_plain())
    print(metrics.table(per_class=True))
    print(beside_expected(metrics, config.expected).text, end="")
    return 0


def with_settings_of_weights(config: Config, state: Mapping[str, Any], weights: Path) -> Config:
    """The config with the settings that belong to the weights, telling which of them it had otherwise.

    Raises:
        UserError: the weights are of another kind of detector or backbone.
    """
    plain = to_plain(config)
    for key in ("model.kind", "model.backbone.kind"):
        ours, theirs = get(plain, key), get(state["config"], key)
        if ours != theirs:
            raise UserError(f"checkpoint '{weights}' has {key} {theirs}, the config {ours}")
    belonging = of_checkpoint(state["config"])
    changed = differences(config, belonging)
    if changed:
        warnings.warn(f"'{weights}' was made with other settings, which count: {describe(changed)}", stacklevel=2)
    return laid_over(config, belonging, f"settings of '{weights}'")


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
