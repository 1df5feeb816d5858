"""``tools/benchmark.py eval``: time and memory of the evaluation command with each backend."""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from dcn_det.benchmark.ratios import Bars, add_output, report
from dcn_det.cli.arguments import Parser, positive

CLASSES = 80


def parser() -> argparse.ArgumentParser:
    """Returns the command's argument parser."""
    result = Parser(
        prog="dcn-det benchmark eval",
        description="Measure the evaluation command on synthetic results.",
        examples=["dcn-det benchmark eval --images 500 --detections 50000"],
    )
    result.add_argument("--images", type=positive, default=5000, help="number of images (default: %(default)s)")
    result.add_argument("--detections", type=positive, default=500_000, help="number of them (default: %(default)s)")
    add_output(result)
    return result


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    args = parser().parse_args(argv)
    return report(args, *evaluation(args.images, args.detections))


def evaluation(images: int, detections: int) -> tuple[dict[str, float], Bars]:
    """Measures the ``tools/evaluate.py`` command on synthetic results, in a separate process per backend.

    Args:
        images: number of images; COCO val2017 has 5,000.
        detections: number of detections.

    Returns:
        CPU seconds and peak memory (MiB) by name, and the bars.
    """
    numbers: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="dcn_det-benchmark-") as folder:
        write_synthetic(Path(folder), images, detections)
        printed = set()
        for backend in ("hotcoco", "pycocotools"):
            seconds, memory, text = _run_evaluate(Path(folder), backend)
            numbers[f"evaluate with {backend}: seconds"] = seconds
            numbers[f"evaluate with {backend}: MiB"] = memory
            printed.add(text.split("\n", 1)[1])
    assert len(printed) == 1, "the backends disagree"
    fast, slow = "evaluate with hotcoco: ", "evaluate with pycocotools: "
    return numbers, {
        "evaluate: pycocotools / hotcoco, seconds": (numbers[f"{slow}seconds"] / numbers[f"{fast}seconds"], ">=", 10),
        "evaluate: hotcoco / pycocotools, memory": (numbers[f"{fast}MiB"] / numbers[f"{slow}MiB"], "<=", 1 / 3),
    }


def _run_evaluate(folder: Path, backend: str) -> tuple[float, float, str]:
    """Returns the CPU seconds, the peak memory in MiB, and the printed text."""
    # getrusage reports the parent's peak if it is higher; VmHWM starts from zero in the new program.
    program = (
        "import re, sys\nfrom dcn_det.cli.evaluate import main\ncode = main(sys.argv[1:])\n"
        "status = open('/proc/self/status').read()\n"
        "print(int(re.search(r'VmHWM:\\s+(\\d+)', status)[1]) / 1024, file=sys.stderr)\nsys.exit(code)"
    )
    files = [str(folder / "truth.json"), str(folder / "results.json")]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", program, *files, "--backend", backend],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, float(done.stderr.strip().splitlines()[-1]), done.stdout


def write_synthetic(folder: Path, images: int, detections: int) -> None:
    """Writes truth.json and results.json: about 7 objects per image, and a quarter of the detections near an object."""
    random = np.random.default_rng(0)
    objects = 36 * images // 5
    owner, category = random.integers(1, images + 1, objects), random.integers(1, CLASSES + 1, objects)
    boxes = np.hstack([random.uniform(0, 400, (objects, 2)), np.exp(random.uniform(1.5, 5.3, (objects, 2)))])
    truth: dict[str, Any] = {
        "images": [{"id": i, "height": 480, "width": 640} for i in range(1, images + 1)],
        "categories": [{"id": i, "name": f"class {i}"} for i in range(1, CLASSES + 1)],
        "annotations": [
            {"id": i, "image_id": image, "category_id": label, "bbox": box, "area": box[2] * box[3], "iscrowd": crowd}
            for i, (image, label, box, crowd) in enumerate(
                zip(
                    owner.tolist(),
                    category.tolist(),
                    boxes.tolist(),
                    (random.random(objects) < 0.01).astype(int).tolist(),
                ),
                start=1,
            )
        ],
    }
    near = random.integers(0, objects, detections // 4)
    sizes = np.tile(boxes[near, 2:], 2)
    moved = boxes[near] + random.normal(0, 0.1, (len(near), 4)) * sizes
    far = detections - len(near)
    found = np.vstack([moved, np.hstack([random.uniform(0, 400, (far, 2)), random.uniform(5, 200, (far, 2))])])
    found[:, 2:] = found[:, 2:].clip(min=1)
    image_ids = np.concatenate([owner[near], random.integers(1, images + 1, far)])
    labels = np.concatenate([category[near], random.integers(1, CLASSES + 1, far)])
    scores = random.random(detections).astype(np.float32).astype(np.float64)
    columns = (
        image_ids.tolist(),
        labels.tolist(),
        found.astype(np.float32).astype(np.float64).tolist(),
        scores.tolist(),
    )
    results = [
        {"image_id": image, "category_id": label, "bbox": box, "score": score}
        for image, label, box, score in zip(*columns)
    ]
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "results.json").write_text(json.dumps(results))
