"""Loader processes that hang, are stopped or run out of shared memory or descriptors end a run with one line."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dcn_det.config.data import SampleDataConfig
from dcn_det.data import build, loader
from dcn_det.data.loader import Loader, StoppedWaiting
from dcn_det.errors import UserError
from tests.messages import refused

ROOT = Path(__file__).resolve().parents[2]


def batches(root: Path, workers: int = 1, **options: float) -> Loader:
    data = SampleDataConfig.model_validate(
        {
            "root": str(root),
            "train": {"images": "train", "annotations": "annotations/train.json"},
            "test": {"images": "val", "annotations": "annotations/val.json"},
            "resize": {"short_side": 96, "max_side": 200},
            "workers": workers,
            **options,
        }
    )
    return build.build_train_loader(build.build_dataset(data, "train"), data, 2, seed=3)


def workers() -> list[int]:
    """Processes of the loader: forks of this one."""
    found = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    own = Path("/proc/self/cmdline").read_bytes()
    return [int(pid) for pid in found if Path(f"/proc/{pid}/cmdline").read_bytes() == own]


@pytest.fixture
def stopped(sample_root: Path) -> Iterator[Iterator]:
    """An iterator whose workers are stopped, with a timeout of 2 s."""
    before = set(workers())
    found = iter(batches(sample_root, 2, timeout=2.0))
    next(found)
    own = set(workers()) - before
    assert len(own) == 2
    for pid in own:
        os.kill(pid, signal.SIGSTOP)
    yield found
    assert not own & set(workers()), "the workers go on"


def drain(found: Iterator) -> None:
    for _ in range(100):
        next(found)


def test_stopped_workers_end_in_an_error_that_says_what_to_do(stopped: Iterator) -> None:
    started = time.monotonic()
    with refused("data.timeout", "/dev/shm", "MiB free", "data.workers", "batch_size"):
        drain(stopped)
    assert time.monotonic() - started < 15


def test_a_request_to_stop_does_not_wait_for_the_timeout(stopped: Iterator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "PATIENCE", 1.0)
    loader.stop_waiting.set()
    try:
        with pytest.raises(StoppedWaiting):
            drain(stopped)
    finally:
        loader.stop_waiting.clear()


def test_ctrl_c_while_waiting_ends_the_workers(stopped: Iterator) -> None:
    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        with pytest.raises(KeyboardInterrupt):
            drain(stopped)
    finally:
        signal.signal(signal.SIGALRM, previous)


@pytest.mark.parametrize(
    ("problem", "parts"),
    [
        (RuntimeError("unable to allocate shared memory(shm): No space left on device (28)"), ("/dev/shm", "free")),
        (RuntimeError("unable to open shared memory object: Too many open files (24)"), ("ulimit",)),
        (OSError(24, "Too many open files"), ("ulimit",)),
    ],
)
def test_a_batch_that_cannot_be_handed_over_is_told_at_once(
    sample_root: Path, monkeypatch: pytest.MonkeyPatch, problem: Exception, parts: tuple[str, ...]
) -> None:
    def fail(self: torch.Tensor) -> None:
        raise problem

    monkeypatch.setattr(torch.Tensor, "share_memory_", fail)
    started = time.monotonic()
    with refused(*parts, "data.workers", "batch_size"):
        next(iter(batches(sample_root, 1)))
    assert time.monotonic() - started < 60  # the timeout is 300 s


def test_an_error_of_the_system_in_a_worker_is_one_line(sample_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object, draw: object) -> None:
        raise OSError(5, "Input/output error", "a.jpg")

    monkeypatch.setattr("dcn_det.data.dataset.DetectionDataset.__getitem__", fail)
    with pytest.raises(UserError) as error:
        next(iter(batches(sample_root, 1)))
    assert str(error.value).startswith("a.jpg: ") and "\n" not in str(error.value)


SMALL = """
import sys
from itertools import islice
from pathlib import Path
from dcn_det.entry import run
from tests.data.test_stuck_loader import batches
def main():
    for batch in islice(batches(Path(sys.argv[1]), 2, timeout=8.0), 60):
        held = batch
    return 0
run(main)
"""


@pytest.mark.parametrize("before", ["mount -t tmpfs -o size=64k none /dev/shm", "ulimit -n 24"])
def test_small_shared_memory_and_few_descriptors_end_with_one_line(sample_root: Path, before: str) -> None:
    command = ["unshare", "-m"] if before.startswith("mount") else []
    if command and subprocess.run([*command, "sh", "-c", before], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    done = subprocess.run(
        [*command, "sh", "-c", f'{before} && exec "$@"', "sh", sys.executable, "-c", SMALL, str(sample_root)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    clear = ("/dev/shm",) if command else ("ulimit", "Too many open files")
    assert any(text in errors[0] for text in (*clear, "data.timeout")), errors
