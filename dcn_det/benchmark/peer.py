"""``dcn-det benchmark peer``: plain Faster R-CNN and torchvision's, trained alike on the same data.

A difference in accuracy that is larger than that between seeds is a difference of the implementations.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision

from dcn_det.benchmark.torchvision_twin import TorchvisionTwin, check
from dcn_det.cli.arguments import Parser, positive
from dcn_det.config import Config, load_config, to_plain, with_values
from dcn_det.distributed import resolve_device
from dcn_det.engine.build import build_optimizer
from dcn_det.engine.detection import DetectionTask
from dcn_det.engine.session import Session, set_up_process
from dcn_det.engine.step import Step
from dcn_det.env import cpu_model
from dcn_det.errors import UserError
from dcn_det.evaluation.measure import evaluation_settings
from dcn_det.evaluation.results import check_results
from dcn_det.files import write_json
from dcn_det.inference.build import build_predictor
from dcn_det.inference.dataset import detect_dataset
from dcn_det.models.detector import Detector
from dcn_det.precision import PRECISIONS
from dcn_det.progress import Progress, say_on_stderr

Model = Detector | TorchvisionTwin
NAMES = ("dcn_det", "torchvision")
SHOWN = ("AP", "AP50", "AP75", "mAP50", "mAP70")


def parser() -> argparse.ArgumentParser:
    """Returns the command's argument parser."""
    result = Parser(
        prog="dcn-det benchmark peer",
        description="Train and test the plain Faster R-CNN of a config, and torchvision's Faster R-CNN with the same "
        "layers, data, anchors, schedule and seeds. Write accuracy and time of both.",
        examples=["dcn-det benchmark peer configs/fod/faster_rcnn.yaml --seeds 3"],
    )
    result.add_argument("config", type=Path, help="YAML file, such as configs/fod/faster_rcnn.yaml")
    result.add_argument("overrides", nargs="*", metavar="key=value", help="settings that override the config")
    result.add_argument(
        "--seeds", type=positive, default=1, help="number of seeds, from that of the config (default: %(default)s)"
    )
    result.add_argument("--only", choices=NAMES, help="train and test one of the two")
    result.add_argument("--save", type=Path, help="write the numbers as JSON, after each run")
    return result


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    args = parser().parse_intermixed_args(argv)
    config = load_config(args.config, *args.overrides)
    check(config)
    runs: list[dict[str, Any]] = []
    for seed in range(config.seed, config.seed + args.seeds):
        for name in [args.only] if args.only else NAMES:
            say_on_stderr(f"{name}, seed {seed}")
            runs.append({"name": name, "seed": seed, **_run(with_values(config, {"seed": seed}, "--seeds"), name)})
            if args.save:
                write_json(args.save, {**_surroundings(config), "runs": runs})
    print(table(runs))
    return 0


def _surroundings(config: Config) -> dict[str, Any]:
    device = resolve_device(config.device)
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_model(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "config": to_plain(config),
    }


def _run(config: Config, name: str) -> dict[str, Any]:
    """Trains and tests one of the two; returns metrics, seconds and the number of parameters."""
    set_up_process(config, resolve_device(config.device))
    task = DetectionTask(config)
    session = Session(task)
    if task.test_set is None:
        raise UserError("data.test: has no annotations; accuracy cannot be compared without")
    assert isinstance(session.model, Detector)
    model: Model = session.model
    if name == "torchvision":
        set_up_process(config, session.device)
        model = TorchvisionTwin(config, len(session.categories)).to(session.device)
    started, busy = time.perf_counter(), time.process_time()
    train(session, model)
    trained, busy = time.perf_counter(), time.process_time() - busy
    metrics = measure(task, model)
    return {
        "metrics": metrics,
        "train_seconds": trained - started,
        "train_cpu_seconds": busy,
        "test_seconds": time.perf_counter() - trained,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def train(session: Session, model: Model) -> None:
    """Trains a model with the batches, optimizer and schedule of a session.

    Raises:
        UserError: a loss or gradient is not finite.
    """
    settings, division = session.config.train, session.division
    multipliers = session.lr_multipliers if model is session.model else {}
    optimizer = build_optimizer(settings, model, session.rate.effective, multipliers)
    step = Step(model.train(), optimizer, session.device, PRECISIONS[settings.precision], settings.clip_norm)
    batches = iter(session.train_batches(0, division.batch_size, division.accumulate))
    progress = Progress("iteration", every=30.0)
    for iteration in range(session.length):
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * session.factor(iteration)
        if not step.gradients([next(batches) for _ in range(division.accumulate)]).finite:
            raise UserError(f"a loss or gradient is not finite at iteration {iteration}; lower train.optimizer.lr")
        step.apply()
        progress(iteration + 1, session.length)
    if session.device.type == "cuda":
        torch.cuda.synchronize()


def measure(task: DetectionTask, model: Model) -> dict[str, float | None]:
    """Tests a model on the test split; returns all metrics of the data format and COCO's, None where undefined."""
    config, dataset, truth = task.config, task.test_set, task.truth
    assert dataset is not None and truth is not None
    predictor = build_predictor(model, dataset.categories, config)
    with tempfile.TemporaryDirectory(prefix="dcn_det-peer-") as folder:
        found = detect_dataset(predictor, dataset, config.data, config.test.batch_size, Path(folder), say_on_stderr)
    results = check_results(found, truth.coco.images, truth.coco.category_ids, "bbox")
    values: dict[str, float] = {}
    for metrics in truth.measures(results, evaluation_settings(config)):
        values |= metrics.values
    return {name: None if math.isnan(value) else value for name, value in values.items()}


def table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Returns a line for each implementation: means over the seeds, with standard deviations if there are several."""
    shown = [metric for metric in SHOWN if metric in runs[0]["metrics"]]
    lines = ["  ".join([f"{'':<12}", *(f"{each:>12}" for each in (*shown, "train, s", "test, s"))])]
    for name in dict.fromkeys(run["name"] for run in runs):
        mine = [run for run in runs if run["name"] == name]
        cells = [_cell([run["metrics"][metric] for run in mine], 100) for metric in shown]
        cells += [_cell([run[key] for run in mine], 1) for key in ("train_seconds", "test_seconds")]
        lines.append("  ".join([f"{name:<12}", *(f"{cell:>12}" for cell in cells)]))
    return "\n".join(lines)


def _cell(values: Sequence[float | None], factor: float) -> str:
    known = [factor * value for value in values if value is not None]
    if len(known) < len(values):
        return "n/a"
    mean = f"{statistics.fmean(known):.1f}"
    return mean if len(known) == 1 else f"{mean} +- {statistics.stdev(known):.1f}"
