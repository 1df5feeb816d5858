"""The plan of a table: rows, shared work, missing files, time and disk space."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dcn_det.config import RunConfig
from dcn_det.errors import UserError
from dcn_det.files import read_json
from dcn_det.progress import Say
from dcn_det.reproduce.state import State
from dcn_det.reproduce.steps import Graph, Options, Step, trainings
from dcn_det.reproduce.tables import Row
from dcn_det.reproduce.write import aligned, title

IMAGES = {
    "train2017": 118_287, "val2017": 5_000, "train2014": 82_783, "val2014": 40_504,
    "VOC2007/ImageSets/Main/trainval": 5_011, "VOC2012/ImageSets/Main/trainval": 11_540,
}  # fmt: skip
"""Images by a part of the name of an annotation file or image set."""
MASKED_IMAGES = {"voc_masks": 10_582, "cityscapes": 2_975}
"""Training images of data with masks, by kind."""
TRAINING_GIB = 1.7
"""Largest folder of a training: two checkpoints with momentum, and the final weights."""
_WORDS = {
    "train": "trainings",
    "convert": "conversions",
    "test": "tests",
    "dilation": "measurements of offsets",
    "time": "measurements of time",
    "peer": "trainings of torchvision's twin",
}
DATA_GIB = {"coco": 50, "voc": 6}
"""Archives and extracted images."""


def plan(options: Options, graph: Graph, rows: Sequence[Row], times: Mapping[str, float]) -> str:
    """Describes what reproducing some rows takes, on several lines. Only reads files.

    Args:
        options: what is reproduced.
        graph: its rows and steps.
        rows: the rows.
        times: seconds of a training step on one GPU, by name of the step.
    """
    state, steps = State(options.output), graph.select(rows)
    trained = list(trainings(steps))
    header = ["row", "config", "first step", "state"]
    lines = [header]
    for each in graph.rows:
        if each.row not in rows:
            continue
        if not each.steps:
            lines.append([each.row.label, "-", "-", each.absent])
            continue
        conditions = [state.condition(step, graph.steps)[0] for step in each.steps]
        lines.append(
            [
                each.row.label,
                f"{each.row.config}",
                each.steps[0].name,
                "done" if set(conditions) == {"done"} else next(each for each in conditions if each != "done"),
            ]
        )
    count = sum(bool(each.steps) for each in graph.rows if each.row in rows)
    kinds = Counter(step.name.partition("/")[0] for step in steps)
    done = sum(state.condition(step, graph.steps)[0] == "done" for step in steps)
    parts = [title(options), "", *aligned(lines)]
    parts += [options.table.note] if options.table.note else []
    counts = ", ".join(f"{kinds[kind]} {word}" for kind, word in _WORDS.items() if kinds[kind])
    parts += ["", f"{count} rows, {counts}; {done} of {len(steps)} steps are done in '{options.output}'"]
    if trained:
        parts += ["", *_trainings(trained, times, options.schedule)]
    parts += ["", *_missing(steps), "", _disk(options, trained, steps)]
    parts += [_submissions(steps)] if any(step.output.suffix == ".zip" for step in steps) else []
    return "\n".join([*parts, "Nothing was run. To run it, add --run."])


def _trainings(trained: Sequence[Step], times: Mapping[str, float], schedule: str) -> list[str]:
    lines, total = [["training", "length", "images seen", "GPU hours"]], 0.0
    for step in trained:
        seen, hours = images_seen(step.config), ""
        if seen is not None and step.name in times:
            spent = seen / step.config.train.batch_size * times[step.name] / 3600
            total, hours = total + spent, f"{spent:,.0f}"
        train = step.config.train
        length = f"{train.epochs:g} epochs" if train.epochs else f"{train.iterations} x {train.reference_batch} images"
        lines.append([step.name, length, "?" if seen is None else f"{seen:,}", hours])
    if times:
        closing = f"{total:,.0f} GPU hours of training in all; tests are not counted."
    else:
        closing = "GPU hours: give the seconds of a training step (--step-seconds S), or measure it here (--measure)."
    return [*aligned(lines), closing]


def images_seen(config: RunConfig) -> int | None:
    """Returns the number of images that a training sees, images without objects included; None if it is not known."""
    train = config.train
    if train.iterations is not None:
        return train.iterations * train.reference_batch
    assert train.epochs is not None
    data: Any = config.data
    if data.kind in MASKED_IMAGES:
        sizes = [MASKED_IMAGES[data.kind]]
    else:
        sizes = [
            count
            for name in data.train.paths
            for part, count in IMAGES.items()
            if re.search(rf"{part}\.(json|txt)$", name) is not None
        ]
    low, high = data.train.part
    share = data.fraction * (high - low) * (2 if data.flip == "double" else 1)
    return round(train.epochs * sum(sizes) * share) if sizes else None


def _missing(steps: Sequence[Step]) -> list[str]:
    found: dict[str, list[Path]] = {}
    for step in steps:
        for path, how in step.missing.items():
            if path not in found.setdefault(how, []):
                found[how].append(path)
    lines = [f"  {', '.join(map(str, paths))}\n    {how}" for how, paths in found.items()]
    lines = ["missing:", *lines] if lines else ["missing: nothing"]
    if any(step.config.model.backbone.weights == "torchvision" for step in trainings(steps)):
        lines.append(
            "ImageNet weights of ResNet-101 are downloaded at first use; dcn-det download weights does so before."
        )
    return lines


def _disk(options: Options, trained: Sequence[Step], steps: Sequence[Step]) -> str:
    needed = [f"{TRAINING_GIB * len(trained):.0f} GiB for the trainings"] if trained and not options.smoke else []
    kinds = {step.config.data.kind for step in steps if step.missing} & DATA_GIB.keys()
    needed += [f"about {DATA_GIB[kind]} GiB for '{kind}' data with its archives" for kind in sorted(kinds)]
    place = next(each for each in (options.output.absolute(), *options.output.absolute().parents) if each.exists())
    free = shutil.disk_usage(place).free / 2**30
    return f"disk: {', '.join(needed) or 'little'}; {free:.0f} GiB free"


def _submissions(steps: Sequence[Step]) -> str:
    count = sum(step.output.suffix == ".zip" for step in steps)
    return f"The test split has no annotations: {count} submissions are written for COCO's server."


def measure_step(step: Step, say: Say) -> float:
    """Measures a training step on random images on this machine, with ``dcn-det benchmark detector``.

    Returns:
        Seconds of a step of ``train.batch_size`` images.

    Raises:
        UserError: the benchmark fails.
    """
    config = step.config
    overrides = [each for each in step.command[2:] if "=" in each and not each.startswith("-")]
    with tempfile.TemporaryDirectory() as folder:
        numbers = Path(folder) / "numbers.json"
        command = ["benchmark", "detector", step.command[1], *overrides, "--save", str(numbers)]
        command += ["--batch", str(config.train.batch_size), "--rounds", "3", "--seconds", "0.5"]
        command += ["--size", *map(str, config.data.train_size)]
        say(f"{step.name}: measuring a training step")
        done = subprocess.run([sys.executable, "-m", "dcn_det", *command], capture_output=True, text=True)
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines()
            raise UserError(f"--measure: {step.name}: {lines[-1] if lines else f'exit code {done.returncode}'}")
        run = next(iter(read_json(numbers)["runs"].values()))
    return float(run["training"]["milliseconds"]) / 1000
