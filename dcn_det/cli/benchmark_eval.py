"""``tools/benchmark.py eval`` and ``postprocess``: the evaluation command with either back end, the way from a head's
output to detections beside the same with torchvision's operators, and several scales beside each alone."""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dcn_det.evaluation.results import write_json

CLASSES = 80
ROIS = 300


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    result = argparse.ArgumentParser(prog="benchmark", description="Measures ratios of times, side by side.")
    result.add_argument("what", choices=["eval", "postprocess"], help="what to measure")
    result.add_argument("--rounds", type=int, default=7, help="turns of each contestant (postprocess, %(default)s)")
    result.add_argument("--images", type=int, default=5000, help="images to evaluate (eval, %(default)s)")
    result.add_argument("--detections", type=int, default=500_000, help="detections to evaluate (eval, %(default)s)")
    result.add_argument("--save", type=Path, help="write the numbers as JSON")
    result.add_argument("--check", action="store_true", help="exit with 1 when a bar is missed")
    return result


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    args = parser().parse_args(argv)
    if args.what == "eval":
        numbers, bars = evaluation(args.images, args.detections)
    else:
        numbers, bars = postprocessing(args.rounds)
    for name, value in numbers.items():
        print(f"{name:<44} {value:>10.3f}")
    missed = 0
    for name, (ratio, relation, limit) in bars.items():
        good = ratio >= limit if relation == ">=" else ratio <= limit
        missed += not good
        print(f"{name:<44} {ratio:>10.2f}  ({relation} {limit:g}) {'pass' if good else 'MISS'}")
    if args.save:
        write_json(args.save, {"numbers": numbers, "ratios": {name: bar[0] for name, bar in bars.items()}})
    return 1 if args.check and missed else 0


Bars = dict[str, tuple[float, str, float]]
"""Ratio, relation and limit by name."""


def evaluation(images: int, detections: int) -> tuple[dict[str, float], Bars]:
    """The whole ``tools/evaluate.py`` command on synthetic results of COCO's size, in a process of its own."""
    numbers: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="dcn_det-benchmark-") as folder:
        write_synthetic(Path(folder), images, detections)
        printed = set()
        for backend in ("hotcoco", "pycocotools"):
            seconds, memory, text = _run_evaluate(Path(folder), backend)
            numbers[f"evaluate with {backend}: seconds"] = seconds
            numbers[f"evaluate with {backend}: MiB"] = memory
            printed.add(text.split("\n", 1)[1])
    assert len(printed) == 1, "the back ends disagree"
    fast, slow = "evaluate with hotcoco: ", "evaluate with pycocotools: "
    return numbers, {
        "evaluate: pycocotools / hotcoco, seconds": (numbers[f"{slow}seconds"] / numbers[f"{fast}seconds"], ">=", 10),
        "evaluate: hotcoco / pycocotools, memory": (numbers[f"{fast}MiB"] / numbers[f"{slow}MiB"], "<=", 1 / 3),
    }


def _run_evaluate(folder: Path, backend: str) -> tuple[float, float, str]:
    """Processor seconds, peak memory in MiB, and what is printed."""
    # getrusage would tell the parent's peak where that is higher; VmHWM starts anew with the program.
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
    """truth.json and results.json: about 7 objects an image, a quarter of the detections near one."""
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


def postprocessing(rounds: int) -> tuple[dict[str, float], Bars]:
    """One image, 80 classes x 300 boxes: decode, threshold, suppress within each class, best 100."""
    import torch
    import torchvision

    from dcn_det.models import boxes as box_ops
    from dcn_det.models.postprocess import PostProcess, confident

    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(ROIS, 2, generator=generator) * torch.tensor([800.0, 450.0])
    rois = torch.cat([corners, corners + 30 + 150 * torch.rand(ROIS, 2, generator=generator)], dim=1)
    deltas = 0.5 * torch.randn(ROIS, CLASSES, 4, generator=generator)
    scores = (0.5 * torch.randn(ROIS, CLASSES, generator=generator)).softmax(dim=1)
    stds = (0.1, 0.1, 0.2, 0.2)
    select = PostProcess(score_threshold=1e-3, nms_iou=0.3, max_detections=100)

    def ours() -> Any:
        boxes = box_ops.clip(box_ops.decode(rois[:, None], deltas, stds), 600, 1000)
        return select(confident(scores, boxes, 1e-3)).scores

    coder = torchvision.models.detection._utils.BoxCoder(tuple(1 / std for std in stds))

    def theirs() -> Any:
        boxes = coder.decode(deltas.flatten(1), [rois])
        boxes = torchvision.ops.clip_boxes_to_image(boxes, (600, 1000)).reshape(-1, 4)
        labels = torch.arange(CLASSES).expand(ROIS, CLASSES).reshape(-1)
        flat = scores.reshape(-1)
        keep = (flat > 1e-3).nonzero()[:, 0]
        boxes, flat, labels = boxes[keep], flat[keep], labels[keep]
        kept = torchvision.ops.batched_nms(boxes, flat, labels, 0.3)[:100]
        return flat[kept]

    torch.testing.assert_close(ours(), theirs())
    medians = _take_turns({"ours": ours, "torchvision": theirs}, rounds, 20)
    numbers = {f"post-processing of an image, {name}: ms": 1e3 * value for name, value in medians.items()}
    bars: Bars = {"post-processing: torchvision / ours": (medians["torchvision"] / medians["ours"], ">=", 8)}
    views, view_bars = scales(rounds)
    return numbers | views, bars | view_bars


def scales(rounds: int) -> tuple[dict[str, float], Bars]:
    """An image at three sizes, all in one test and each in one of its own; a small detector without training."""
    import torch

    from dcn_det.config import from_plain
    from dcn_det.inference.build import build_predictor
    from dcn_det.models.build import build_detector
    from dcn_det.structures import Category

    backbone = {"kind": "resnet18", "weights": "none", "norm": "bn", "frozen_stages": 0}
    model = {"backbone": backbone, "rpn": {"post_nms": 100}}
    sizes = [{"short_side": short, "max_side": short * 2} for short in (240, 320, 400)]
    image = np.random.default_rng(0).integers(0, 256, (400, 600, 3), dtype=np.uint8)
    categories = tuple(Category(i, str(i)) for i in range(1, CLASSES + 1))
    torch.manual_seed(0)
    works: dict[str, Callable[[], Any]] = {}
    for name, chosen in {"all": sizes, **{str(size["short_side"]): [size] for size in sizes}}.items():
        config = from_plain({"model": model, "test": {"scales": chosen}})
        predictor = build_predictor(build_detector(config.model, CLASSES, config.test), categories, config)
        works[name] = partial(predictor, image)
    medians = _take_turns(works, rounds, 1)
    alone = sum(value for name, value in medians.items() if name != "all")
    numbers = {"three scales in one test: ms": 1e3 * medians["all"], "the same one by one: ms": 1e3 * alone}
    return numbers, {"three scales / their sum": (medians["all"] / alone, "<=", 1.05)}


def _take_turns(works: dict[str, Callable[[], Any]], rounds: int, repeats: int) -> dict[str, float]:
    """Median seconds of each contestant; they take turns, so that all meet the same disturbances."""
    for work in works.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            start = time.perf_counter()
            for _ in range(repeats):
                work()
            times[name].append((time.perf_counter() - start) / repeats)
    return {name: statistics.median(values) for name, values in times.items()}
