"""The trainings that are compared, and the file of their results, from which an interrupted comparison continues."""

from __future__ import annotations

import json
import multiprocessing
import signal
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dcn_det.env import machine
from dcn_det.errors import UserError
from dcn_det.files import read_json, write_json
from dcn_det.mnist.data import Digits
from dcn_det.mnist.networks import METHODS, DigitNet, build, multiply_adds, resumed
from dcn_det.mnist.samples import samples_of
from dcn_det.mnist.training import Schedule, measure, train
from dcn_det.progress import Progress, Say

SOURCES, FAIR = "sources", "fair"
PROTOCOLS = {
    SOURCES: "plain trained on regular digits only, deformable resumed from it on scaled digits",
    FAIR: "all trained on the same scaled digits",
}
"""Key and description of each protocol. The first is that of the published numbers, but short: there, the plain network
saw 600,000 images and the resumed one 1,200,000, and only its offsets and batch norm were trained."""
SCHEDULES = {
    "plain": Schedule(images=20000, scaled=False, batch_size=16, lr=1e-2, branch_lr=1.0),
    "resumed": Schedule(images=12000, scaled=True, batch_size=16, lr=5e-3, branch_lr=0.1, constant_statistics=True),
    FAIR: Schedule(images=6000, scaled=True, batch_size=16, lr=1e-2, branch_lr=0.05),
}

_PLACES = {
    each: place
    for place, each in enumerate([(SOURCES, "plain"), (SOURCES, "deformable"), *((FAIR, method) for method in METHODS)])
}

TEST_EVERY = 4
"""One in so many test digits is used: all would take two fifths of the whole time. They are taken evenly, since the
first half of them is harder than the second."""

Run = dict[str, Any]
Key = tuple[str, str, int]
"""Protocol, method and seed of a run."""


def settings(training: Digits, testing: Digits, schedules: dict[str, Schedule]) -> dict[str, Any]:
    """Returns what all runs of a file have in common."""
    return {
        "schedules": {name: asdict(each) for name, each in schedules.items()},
        "training_digits": len(training),
        "test_digits": len(testing),
    }


class Results:
    """Results of runs, with the file they are kept in.

    Args:
        path: the file, which is continued if it exists; None keeps the results in memory.
        common: see :func:`settings`.
        device: type of the device.
        threads: of each training.

    Raises:
        UserError: the file cannot be read, or its runs have other settings.
    """

    def __init__(self, path: Path | None, common: dict[str, Any], device: str, threads: int) -> None:
        self.path = path
        self.record: dict[str, Any] = {**machine(device), "threads": threads, **common, "runs": []}
        if path is not None and path.exists():
            saved = load(path)
            if json.loads(json.dumps(common)) != {name: saved.get(name) for name in common}:
                raise UserError(f"--save: the runs in '{path}' have other settings; give the name of a new file")
            self.record["runs"] = saved["runs"]

    def has(self, key: Key) -> bool:
        """Returns whether a run is finished."""
        return any(_key(run) == key for run in self.runs)

    @property
    def runs(self) -> list[Run]:
        """The finished runs."""
        return list(self.record["runs"])

    def add(self, runs: list[Run]) -> None:
        """Adds finished runs, which are kept in the order of seeds, and writes the file."""
        self.record["runs"] = sorted(
            [*self.runs, *runs], key=lambda run: _PLACES[_key(run)[:2]] + len(_PLACES) * run["seed"]
        )
        if self.path is not None:
            write_json(self.path, self.record)


def _key(run: Run) -> Key:
    return run["protocol"], run["method"], run["seed"]


def load(path: Path) -> dict[str, Any]:
    """Reads a file of results.

    Raises:
        UserError: it cannot be read, or is none.
    """
    record = read_json(path)
    common = {"date", "cpu", "versions", "test_digits", "runs"}
    numbers = ("seed", "regular", "scaled", "cpu_seconds", "seconds", "parameters", "multiply_adds")
    if (
        not isinstance(record, dict)
        or not common <= record.keys()
        or not (isinstance(record["versions"], dict) and "torch" in record["versions"])
        or not isinstance(record["runs"], list)
        or not all(
            isinstance(run, dict)
            and {"protocol", "method", "by_scale", "samples"} <= run.keys()
            and all(isinstance(run.get(name), int | float) for name in numbers)
            for run in record["runs"]
        )
    ):
        raise UserError(f"{path}: not a file written by dcn-det mnist --save")
    return dict(record)


def run_all(
    results: Results,
    training: Digits,
    testing: Digits,
    seeds: Iterable[int],
    schedules: dict[str, Schedule],
    say: Say,
    workers: int = 1,
) -> None:
    """Trains and tests all networks with both protocols, except those that are finished.

    Args:
        results: receives the runs.
        training: digits to train on, on the device to use.
        testing: digits to test on, likewise.
        seeds: of weights, order and scaling; the runs of seed 0 record sampling points.
        schedules: as :data:`SCHEDULES`.
        say: receives progress, and a line for each run.
        workers: number of networks that are trained at the same time. With more than one, each has a process with a
            single thread, which takes the functions and digits given here.
    """
    job = partial(_job, training=training, testing=testing, schedules=schedules, say=say)
    # The runs of the first protocol come in pairs, whose second starts from the weights of the first.
    keys: list[Key] = [
        (protocol, method, seed)
        for seed in seeds
        for protocol, method in ((SOURCES, "deformable"), *((FAIR, method) for method in METHODS))
    ]
    missing = [key for key in keys if not results.has(key)]
    if workers == 1:
        for key in missing:
            results.add(job(key))
        return
    # Leaving the pool ends its processes, also after Ctrl-C, which they leave to this one.
    with multiprocessing.get_context("spawn").Pool(workers, _prepare_worker) as pool:
        for runs in pool.imap_unordered(job, missing):
            results.add(runs)


def _prepare_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def _job(key: Key, training: Digits, testing: Digits, schedules: dict[str, Schedule], say: Say) -> list[Run]:
    protocol, method, seed = key
    if protocol == SOURCES:
        return list(_sources(training, testing, seed, say, schedules))
    torch.manual_seed(seed)
    network = build(method).to(training.images.device)
    return [_run(FAIR, method, network, training, testing, schedules[FAIR], seed, say)]


def _sources(training: Digits, testing: Digits, seed: int, say: Say, schedules: dict[str, Schedule]) -> Iterator[Run]:
    torch.manual_seed(seed)
    plain = build("plain").to(training.images.device)
    yield _run(SOURCES, "plain", plain, training, testing, schedules["plain"], seed, say)
    network = resumed(plain, "deformable").to(training.images.device)
    yield _run(SOURCES, "deformable", network, training, testing, schedules["resumed"], seed, say)


def _run(
    protocol: str,
    method: str,
    network: DigitNet,
    training: Digits,
    testing: Digits,
    schedule: Schedule,
    seed: int,
    say: Say,
) -> Run:
    name = f"{protocol} protocol, {METHODS[method]}, seed {seed}"
    cost = train(network, training, schedule, seed, Progress(f"{name}: image", say, every=20.0))
    accuracy = measure(network, testing)
    say(f"{name}: {100 * accuracy.regular:.2f} % regular, {100 * accuracy.scaled:.2f} % scaled")
    return {
        "protocol": protocol,
        "method": method,
        "seed": seed,
        **asdict(accuracy),
        **asdict(cost),
        "parameters": sum(each.numel() for each in network.parameters()),
        "multiply_adds": multiply_adds(network),
        "samples": samples_of(network, testing) if seed == 0 else [],
    }
