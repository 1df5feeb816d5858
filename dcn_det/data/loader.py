"""Turns draws into batches, in this process or in workers."""

from __future__ import annotations

import errno
import gc
import os
import resource
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import cv2
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from dcn_det.data.sampler import Draw
from dcn_det.errors import UserError
from dcn_det.heap import keep_freed_memory
from dcn_det.structures import AnyBatch

SHARED_MEMORY = "/dev/shm"
"""Where Linux keeps shared memory."""
PATIENCE = 4.0
"""Seconds to wait for a batch after a request to stop."""

B = TypeVar("B", bound=AnyBatch, covariant=True)

stop_waiting = threading.Event()
"""Set while this process is requested to stop: a worker that hangs must not prevent that."""


class WorkerDied(UserError):
    """A loader process ended; the batches can be asked for again."""


class StoppedWaiting(Exception):
    """No batch came in time after a request to stop."""


class Batched(Protocol[B]):
    """Data set of a task."""

    def batch(self, draws: Sequence[Draw]) -> B:
        """Loads the images of a batch.

        Raises:
            UserError: an image cannot be used.
        """


class Loader(Generic[B]):
    """Batches of a data set in the sampler's order, whatever the number of workers.

    Args:
        dataset: makes batches, of any task.
        sampler: yields the draws of one batch at a time; may be endless.
        workers: processes that load ahead. 0 loads in this one.
        pin_memory: whether batches are in page-locked memory, for asynchronous copies to CUDA.
        start_method: how workers start: ``fork``, ``spawn``, ``forkserver``, or None for Python's default.
        timeout: maximum time to wait for a batch of the workers, in seconds.
    """

    def __init__(
        self,
        dataset: Batched[B],
        sampler: Sampler[list[Draw]],
        workers: int = 0,
        pin_memory: bool = False,
        start_method: str | None = None,
        timeout: float = 300.0,
    ) -> None:
        self.dataset = dataset
        self.sampler = sampler
        self.timeout = timeout
        self._batches: DataLoader[B | UserError] = DataLoader(
            _Batches(dataset),
            batch_size=None,
            sampler=sampler,
            num_workers=workers,
            collate_fn=_unchanged,
            pin_memory=pin_memory,
            worker_init_fn=partial(_start_worker, os.getpid()),
            multiprocessing_context=start_method if workers > 0 else None,
            # Without one, the loader would draw from, and so move, the global generator.
            generator=torch.Generator().manual_seed(0),
        )

    def __iter__(self) -> Iterator[B]:
        """Yields batches.

        Raises:
            UserError: an image cannot be used (the same message wherever it was loaded), shared memory or file
                descriptors are used up, or no batch came for ``timeout`` seconds.
            WorkerDied: a loader process was killed.
            StoppedWaiting: ``stop_waiting`` was set, and no batch came for a few seconds.
        """
        batches = iter(self._batches)
        workers = getattr(batches, "_workers", ())
        if workers and threading.current_thread() is threading.main_thread():
            # torch's handler raises wherever the program happens to be when a worker dies, such as half-way through
            # an update of the weights. Without it, the next request for a batch finds out.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        watch = _Watch(workers, self.timeout)
        try:
            while (batch := self._next(batches, watch)) is not None:
                if isinstance(batch, UserError):
                    raise batch
                yield batch
        except KeyboardInterrupt:
            watch.kill()  # they may not obey
            raise
        finally:
            watch.over.set()
            if workers:
                batches._shutdown_workers()  # type: ignore[attr-defined]
            watch.kill()  # a stopped process does nothing about the request to end

    def _next(self, batches: Iterator[B | UserError], watch: _Watch) -> B | UserError | None:
        """Returns the next batch, or None after the last."""
        try:
            with watch.waiting():
                batch = next(batches, None)
        except (RuntimeError, OSError, EOFError) as error:
            failure = watch.verdict or _failure(error)
            if failure is error:
                raise
            raise failure from error
        if watch.verdict is not None:
            raise watch.verdict
        return batch


class _Watch:
    """Kills the workers of an iterator when the main process has waited too long for a batch.

    torch's own timeout does not help if a stopped worker has announced a batch whose memory it must still hand over.
    The death of a worker, in contrast, ends every wait for it.

    Args:
        workers: the processes.
        timeout: seconds to wait for a batch.
    """

    def __init__(self, workers: Sequence[Any], timeout: float) -> None:
        self.verdict: UserError | StoppedWaiting | None = None
        self.over = threading.Event()
        self._workers = workers
        self._timeout = timeout
        self._batch = 0
        self._waits = False
        if workers:
            threading.Thread(target=self._run, daemon=True).start()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Context in which the main process waits for a batch."""
        self._batch += 1
        self._waits = True
        try:
            yield
        finally:
            self._waits = False

    def kill(self) -> None:
        """Kills the workers that are left."""
        for worker in self._workers:
            worker.kill()

    def _run(self) -> None:
        # Time is counted in intervals in which this process ran: a run that is stopped and continued loses only one.
        interval = min(0.5, self._timeout / 4)
        waited = stopping = 0.0
        batch = 0
        while not self.over.wait(interval):
            if not self._waits or batch != self._batch:
                batch, waited, stopping = self._batch, 0.0, 0.0
                continue
            waited += interval
            stopping += interval if stop_waiting.is_set() else 0
            if stopping >= PATIENCE:
                self.verdict = StoppedWaiting()
            elif waited >= self._timeout:
                self.verdict = UserError(
                    f"no batch for {waited:g} s (data.timeout): a loader process hangs or is stopped; "
                    f"{_resources()}; {_REMEDIES}, or data.workers=0"
                )
            if self.verdict is not None:
                self.kill()
                return


_FEW_FILES = 256
"""Limits of open files below this are worth a mention; Linux has 1024 by default."""
_REMEDIES = "try fewer data.workers, a smaller batch_size, or more shared memory (docker run --shm-size=2g)"


def _failure(error: Exception) -> Exception:
    """Returns what to raise for an error of torch's loader."""
    text = str(error)
    if "Too many open files" in text or "ancdata" in text or getattr(error, "errno", None) == errno.EMFILE:
        return _too_many_files()
    # A worker can also die while it hands over a batch.
    if isinstance(error, RuntimeError) and not text.startswith("DataLoader worker"):
        return error
    if not isinstance(error, RuntimeError | ConnectionError | EOFError):
        return error
    if stop_waiting.is_set():  # the signal to stop may have reached the workers
        return StoppedWaiting()
    what = text.splitlines()[0] if isinstance(error, RuntimeError) else "a loader process died"
    return WorkerDied(f"{what}; the system may be short of memory: {_resources()}; {_REMEDIES}")


def _too_many_files() -> UserError:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return UserError(
        f"too many open files (at most {limit}): raise the limit (ulimit -n 4096), or try fewer data.workers or a "
        "smaller batch_size"
    )


def _resources() -> str:
    """Describes what workers need to hand over batches: shared memory, and file descriptors if they are few."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    few = f"; at most {limit} open files (ulimit -n)" if limit < _FEW_FILES else ""
    try:
        usage = shutil.disk_usage(SHARED_MEMORY)
    except OSError:
        return f"{SHARED_MEMORY} does not exist{few}"
    return f"{SHARED_MEMORY} has {usage.free >> 20} of {usage.total >> 20} MiB free{few}"


class _Batches(Dataset[Any]):
    """Loads whole batches. User errors travel as values: torch would add a traceback to their message."""

    def __init__(self, dataset: Batched[AnyBatch]) -> None:
        self.dataset = dataset

    def __getitem__(self, draws: list[Draw]) -> AnyBatch | UserError:
        try:
            batch = self.dataset.batch(draws)
        except UserError as error:
            return error
        except OSError as error:
            return UserError(f"{error.filename or 'images'}: cannot be read: {error.strerror or error}")
        return batch if get_worker_info() is None else _shared(batch)


def _shared(batch: AnyBatch) -> AnyBatch | UserError:
    """Moves a batch to shared memory.

    torch would do this later, in a thread that loses the batch if it fails, and the main process would wait forever.
    """
    try:
        for tensor in batch.tensors():
            if tensor.numel():
                tensor.share_memory_()
    except (RuntimeError, OSError) as error:
        if "Too many open files" in str(error):
            return _too_many_files()
        reason = " ".join(str(error).split())[:200]
        return UserError(f"a loader process cannot hand over a batch ({reason}): {_resources()}; {_REMEDIES}")
    return batch


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
