"""``tools/benchmark.py data``: how fast images come, stage by stage, beside bare decoding and resizing."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from dcn_det.config import load_config
from dcn_det.data.build import build_dataset, build_train_loader
from dcn_det.data.loader import collate
from dcn_det.data.sampler import TrainSampler
from dcn_det.data.transforms import decode, flip_image, resize_short_side, resized_size
from dcn_det.evaluation.results import write_json

ROUNDS = 5


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    result = argparse.ArgumentParser(
        prog="benchmark data",
        description="Images a second of a config's training data: on one core by stage, then loaded.",
    )
    result.add_argument("config", type=Path, help="YAML file")
    result.add_argument("overrides", nargs="*", metavar="key=value", help="settings laid over the config")
    result.add_argument("--images", type=int, default=64, help="how many to take (default %(default)s)")
    result.add_argument("--save", type=Path, help="write the numbers as JSON")
    return result


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    args = parser().parse_intermixed_args(argv)
    config = load_config(args.config, args.overrides)
    data = config.data
    dataset = build_dataset(data, "train")
    cv2.setNumThreads(0)
    torch.set_num_threads(1)

    sampler = TrainSampler(dataset.index.image_ids, dataset.index.landscape, 1, config.seed, flip=data.flip)
    draws = [draw for batch in islice(sampler, args.images) for draw in batch]
    files = [dataset.index.folder / dataset.index.file_name(draw.image) for draw in draws]
    contents = [path.read_bytes() for path in files]
    images = [image for image in map(decode, contents) if image is not None]
    resize = partial(resize_short_side, short_side=dataset.short_side, max_side=dataset.max_side)
    resized = [resize(image) for image in images]

    def bare() -> None:
        for content in contents:
            image = np.asarray(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR))
            height, width = resized_size(image.shape[0], image.shape[1], dataset.short_side, dataset.max_side)
            cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)

    works: dict[str, Callable[[], Any]] = {
        "bare cv2 decode + resize": bare,
        "read": lambda: drop(path.read_bytes() for path in files),
        "decode": lambda: drop(decode(content) for content in contents),
        "resize": lambda: drop(resize(image) for image in images),
        "flip": lambda: drop(flip_image(image) for image in resized),
        "example (all of it, and boxes)": lambda: drop(dataset[draw] for draw in draws),
        "example and batch": lambda: drop(collate([dataset[draw]]) for draw in draws),
    }

    def drop(results: Iterable[Any]) -> None:
        for _ in results:
            pass

    best = measure(works)
    records = {name: seconds / len(draws) * 1e3 for name, seconds in best.items()}
    print(f"{dataset.index.report}")
    print(f"{len(draws)} images, short side {dataset.short_side}, CPU time on one core, best of {ROUNDS} turns")
    for name, milliseconds in records.items():
        print(f"  {name:<32} {milliseconds:8.2f} ms {1e3 / milliseconds:8.1f} images/s")
    ratio = records["example and batch"] / records["bare cv2 decode + resize"]
    print(f"  example and batch / bare: {ratio:.2f}")

    loader = build_train_loader(dataset, data, config.train.batch_size, config.seed)
    batches = iter(loader)
    next(batches)  # workers have started
    count = max(args.images // config.train.batch_size, 2)
    start = time.perf_counter()
    loaded = sum(len(batch) for batch in islice(batches, count))
    speed = loaded / (time.perf_counter() - start)
    print(f"loader, {data.workers} workers, batches of {config.train.batch_size}: {speed:.1f} images/s")
    if args.save:
        write_json(args.save, {"milliseconds": records, "ratio": ratio, "workers": data.workers, "loader": speed})
    return 0


def measure(works: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """CPU seconds of each job, the best of a few turns; they take turns, so that all meet the same disturbances."""
    best = dict.fromkeys(works, float("inf"))
    for _ in range(ROUNDS):
        for name, work in works.items():
            start = time.thread_time()  # unlike the clock on the wall, it does not count other programs' time
            work()
            best[name] = min(best[name], time.thread_time() - start)
    return best
