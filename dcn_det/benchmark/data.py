"""``tools/benchmark.py data``: speed of image loading by stage, compared with bare decoding and resizing."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Any

import cv2
import numpy as np
import torch

from dcn_det.benchmark.ratios import add_output, print_bars
from dcn_det.cli.arguments import Parser, add_config, positive
from dcn_det.config import load_config
from dcn_det.data.build import build_dataset, build_train_loader
from dcn_det.data.dataset import collate
from dcn_det.data.sampler import TrainSampler
from dcn_det.data.transforms import flip_image, resize_short_side, resized_size
from dcn_det.files import write_json
from dcn_det.heap import keep_freed_memory
from dcn_det.images import decode

ROUNDS = 9
LIMIT = 1.1
"""Maximum time of loading, relative to bare decoding and resizing."""


def parser() -> argparse.ArgumentParser:
    """Returns the command's argument parser."""
    result = Parser(
        prog="dcn-det benchmark data",
        description="Measure images per second of loading a config's data: by stage on one core, then with workers.",
        examples=["dcn-det benchmark data configs/sample/rfcn.yaml --images 32"],
    )
    add_config(result)
    result.add_argument("--images", type=positive, default=64, help="number of images (default: %(default)s)")
    add_output(result)
    return result


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    args = parser().parse_intermixed_args(argv)
    config = load_config(args.config, *args.overrides)
    data = config.data
    dataset = build_dataset(data, "train")
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    keep_freed_memory()  # as loader processes do

    sampler = TrainSampler(dataset.index.image_ids, dataset.index.landscape, 1, config.seed, flip=data.flip)
    draws = [draw for batch in islice(sampler, args.images) for draw in batch]
    files = [dataset.index.folder / dataset.index.file_name(draw.image) for draw in draws]
    contents = [path.read_bytes() for path in files]
    images = [image for image in map(decode, contents) if image is not None]
    resize = partial(resize_short_side, short_side=dataset.short_side, max_side=dataset.max_side)
    resized = [resize(image) for image in images]

    def bare(content: bytes) -> None:
        image = np.asarray(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR))
        height, width = resized_size(image.shape[0], image.shape[1], dataset.short_side, dataset.max_side)
        cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)

    works: dict[str, Callable[[int], Any]] = {
        "bare cv2 decode + resize": lambda i: bare(contents[i]),
        "read": lambda i: files[i].read_bytes(),
        "decode": lambda i: decode(contents[i]),
        "resize": lambda i: resize(images[i]),
        "flip": lambda i: flip_image(resized[i]),
        "example (all of these, and boxes)": lambda i: dataset[draws[i]],
        "example and batch": lambda i: collate([dataset[draws[i]]]),
    }
    seconds = measure(works, len(draws))
    records = {name: value * 1e3 for name, value in seconds.items()}
    print(f"{dataset.index.report}")
    print(f"{len(draws)} images, short side {dataset.short_side}, CPU time on one core, median of {ROUNDS} rounds")
    for name, milliseconds in records.items():
        print(f"  {name:<32} {milliseconds:8.2f} ms {1e3 / milliseconds:8.1f} images/s")
    ratio = records["example and batch"] / records["bare cv2 decode + resize"]
    missed = print_bars({"loading: example and batch / bare": (ratio, "<=", LIMIT)})

    loader = build_train_loader(dataset, data, config.train.batch_size, config.seed)
    batches = iter(loader)
    next(batches)  # the workers have started
    count = max(args.images // config.train.batch_size, 2)
    start = time.perf_counter()
    loaded = sum(len(batch) for batch in islice(batches, count))
    speed = loaded / (time.perf_counter() - start)
    print(f"loader, {data.workers} workers, batches of {config.train.batch_size}: {speed:.1f} images/s")
    if args.save:
        write_json(args.save, {"milliseconds": records, "ratio": ratio, "workers": data.workers, "loader": speed})
    return 1 if args.check and missed else 0


def measure(works: dict[str, Callable[[int], Any]], count: int) -> dict[str, float]:
    """Returns the CPU seconds per image of each job: medians over the rounds, averaged over ``count`` images.

    The jobs take turns on every image, so that all run under the same conditions: within seconds, the speed of a core
    drifts by more than the differences to be measured.

    Args:
        works: callables by job name; each takes the index of an image.
        count: number of images.
    """
    times = np.zeros((len(works), ROUNDS, count))
    for turn in range(ROUNDS):
        for i in range(count):
            for job, work in enumerate(works.values()):
                start = time.thread_time()  # unlike wall-clock time, excludes other processes
                work(i)
                times[job, turn, i] = time.thread_time() - start
    return dict(zip(works, np.median(times, axis=1).mean(axis=1).tolist()))
