"""``tools/benchmark.py memory``: peak memory of a training step and of a test image of whole networks.

Images and weights are random. Each measurement has a process of its own: on a CPU, the operating system reports its
peak resident memory, which includes Python and the libraries; on a GPU, PyTorch reports the peak of its allocations.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from dcn_det.cli.arguments import Parser, positive
from dcn_det.errors import UserError
from dcn_det.files import write_json

STAGES = ("training", "testing")


def parser() -> argparse.ArgumentParser:
    """Returns the command's argument parser."""
    result = Parser(
        prog="dcn-det benchmark memory",
        description="Measure the peak memory of a training step and of a test image, each in a process of its own.",
        examples=["dcn-det benchmark memory configs/coco/rfcn_r101_dcn.yaml"],
    )
    result.add_argument(
        "arguments", nargs="+", metavar="config | key=value", help="YAML files, and settings that override all of them"
    )
    result.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    result.add_argument("--batch", type=positive, default=1, help="images per training step (default: %(default)s)")
    for stage, what in (("train", "a training image"), ("test", "a test image")):
        result.add_argument(
            f"--{stage}-size",
            type=positive,
            nargs=2,
            metavar=("HEIGHT", "WIDTH"),
            help=f"of {what}, in pixels (default: from the config)",
        )
    result.add_argument(
        "--stages", nargs="+", choices=STAGES, default=STAGES, metavar="STAGE", help="training, testing (default: both)"
    )
    result.add_argument("--classes", type=positive, help="number of classes (default: from the config)")
    result.add_argument("--save", type=Path, help="write the numbers as JSON")
    return result


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    args = parser().parse_intermixed_args(argv)
    files = [each for each in args.arguments if "=" not in each]
    overrides = [each for each in args.arguments if "=" in each]
    if not files:
        raise UserError("no config given; expected at least one YAML file")
    records = []
    for file in files:
        for stage in args.stages:
            size = args.train_size if stage == "training" else args.test_size
            order = {
                "file": file,
                "overrides": overrides,
                "stage": stage,
                "size": size,
                "device": args.device,
                "batch": args.batch if stage == "training" else 1,
                "classes": args.classes,
            }
            record = measure(order)
            records.append(record)
            height, width = record["size"]
            print(
                f"{record['config']:<32} {stage:<9} {record['batch']} x {height}x{width}  "
                f"{record['gib']:6.2f} GiB ({record['device']}, weights {record['weights_gib']:.2f} GiB)",
                flush=True,
            )
    if args.save:
        write_json(args.save, {"runs": records})
    return 0


def measure(order: dict[str, Any]) -> dict[str, Any]:
    """Measures in a new process.

    Args:
        order: see :func:`main`.

    Returns:
        The order with ``size`` filled in, ``config``, ``gib`` (the peak) and ``weights_gib``.

    Raises:
        UserError: the config is wrong, or the measurement fails.
    """
    command = [sys.executable, "-m", "dcn_det.benchmark.model_memory", json.dumps(order)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        reason = lines[-1] if lines else f"ended with {done.returncode}; is there enough memory?"
        raise UserError(f"{order['file']}: {order['stage']}: {reason}")
    record: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return record


def _measure(order: dict[str, Any]) -> dict[str, Any]:
    import torch

    from dcn_det.config import load_any
    from dcn_det.distributed import resolve_device
    from dcn_det.engine.build import build_optimizer
    from dcn_det.engine.prepare import recompute_stages
    from dcn_det.engine.step import Step
    from dcn_det.engine.tasks import task_of
    from dcn_det.engine.watch import memory_gib
    from dcn_det.models.build import build_model
    from dcn_det.precision import PRECISIONS
    from dcn_det.structures import Category

    config = load_any(order["file"], *order["overrides"])
    device, train = resolve_device(order["device"]), config.train
    training = order["stage"] == "training"
    height, width = order["size"] or (config.data.train_size if training else config.data.input_size)
    classes = order["classes"] or config.data.num_classes
    if classes is None:
        raise UserError(f"--classes: give the number of classes of '{config.data.kind}' data")
    torch.manual_seed(config.seed)
    model = build_model(config, classes).to(device)
    if train.channels_last:
        model = model.to(memory_format=torch.channels_last)
    batch = task_of(config).random_batch(order["batch"], height, width, 0, classes)
    if training:
        recompute_stages(model.train(), train.recompute_stages)
        optimizer = build_optimizer(train, model, 0.0, model.lr_multipliers())
        step = Step(model, optimizer, device, PRECISIONS[train.precision], train.clip_norm)
        step.gradients([batch])
        step.apply()
    else:
        categories = tuple(Category(i, str(i)) for i in range(1, classes + 1))
        task_of(config).trial(model.eval(), categories, config, batch).testing()
    weights = sum(each.numel() * each.element_size() for each in (*model.parameters(), *model.buffers()))
    facts = {"config": config.name, "size": [height, width], "device": str(device)}
    return {**order, **facts, "gib": memory_gib(device), "weights_gib": weights / 2**30}


if __name__ == "__main__":
    try:
        print(json.dumps(_measure(json.loads(sys.argv[1]))))
    except UserError as error:
        sys.exit(str(error))
