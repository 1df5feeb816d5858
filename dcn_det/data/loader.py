"""Turns draws into batches, in this process or in workers."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from dcn_det.data.dataset import DetectionDataset, collate
from dcn_det.data.sampler import Draw
from dcn_det.errors import UserError
from dcn_det.heap import keep_freed_memory
from dcn_det.structures import Batch


class WorkerDied(UserError):
    """A loader process ended; the batches can be asked for again."""


class Loader:
    """Batches of a data set in the sampler's order, whatever the number of workers.

    Args:
        dataset: the images.
        sampler: yields the draws of one batch at a time; may be endless.
        workers: processes that load ahead; they stay between iterations. 0 loads in this one.
        pin_memory: whether batches are in page-locked memory, for asynchronous copies to CUDA.
        start_method: how workers start: ``fork``, ``spawn``, ``forkserver``, or None for Python's default.
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        sampler: Sampler[list[Draw]],
        workers: int = 0,
        pin_memory: bool = False,
        start_method: str | None = None,
    ) -> None:
        self.dataset = dataset
        self.sampler = sampler
        self._batches: DataLoader[Batch | UserError] = DataLoader(
            _Batches(dataset),
            batch_size=None,
            sampler=sampler,
            num_workers=workers,
            collate_fn=_unchanged,
            pin_memory=pin_memory,
            worker_init_fn=partial(_start_worker, os.getpid()),
            persistent_workers=workers > 0,
            multiprocessing_context=start_method if workers > 0 else None,
            # Without one, the loader would draw from, and so move, the global generator.
            generator=torch.Generator().manual_seed(0),
        )

    def __iter__(self) -> Iterator[Batch]:
        """Yields batches.

        Raises:
            UserError: an image cannot be used; the same one-line message wherever it was loaded.
            WorkerDied: a loader process was killed.
        """
        batches = iter(self._batches)
        if self._batches.num_workers > 0 and threading.current_thread() is threading.main_thread():
            # torch's handler raises wherever the program happens to be when a worker dies, such as half-way through
            # an update of the weights. Without it, the next request for a batch finds out.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except (RuntimeError, ConnectionError, EOFError) as error:
                # A worker can also die while it hands over a batch.
                if isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker"):
                    raise
                what = str(error).splitlines()[0] if isinstance(error, RuntimeError) else "a loader process died"
                raise WorkerDied(
                    f"{what}; the system may have been short of memory: fewer data.workers, a "
                    "smaller train.batch_size or more shared memory help"
                ) from error
            if isinstance(batch, UserError):
                raise batch
            yield batch


class _Batches(Dataset["Batch | UserError"]):
    """Loads whole batches. User errors travel as values: torch would add a traceback to their message."""

    def __init__(self, dataset: DetectionDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, draws: list[Draw]) -> Batch | UserError:
        try:
            return collate([self.dataset[draw] for draw in draws])
        except UserError as error:
            return error


def _unchanged(batch: Any) -> Any:
    return batch


GRACE = 5.0
"""Seconds that a worker goes on after SIGTERM."""


def _start_worker(main_process: int, worker: int) -> None:
    # A signal meant for the run reaches the whole process group; the main process decides what to do about it, and
    # may need its workers until its step is done. The same signal is how Python ends workers that are left over.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: _exit_after(GRACE))
    threading.Thread(target=_exit_with, args=(main_process,), daemon=True).start()
    # What was there before the fork stays shared: the collector would write to the pages of every object it visits.
    gc.freeze()
    # Every worker using every core slows all of them down.
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    keep_freed_memory()


def _exit_after(seconds: float) -> None:
    timer = threading.Timer(seconds, os._exit, (0,))
    timer.daemon = True
    timer.start()


def _exit_with(main_process: int) -> None:
    """Ends this process soon after the main one, which may have been killed and is not always its parent."""
    while True:
        time.sleep(1)
        try:
            os.kill(main_process, 0)
        except ProcessLookupError:
            os._exit(0)
