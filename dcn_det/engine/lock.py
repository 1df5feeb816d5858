"""Exclusive use of an output folder by one run."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from dcn_det.distributed import Processes
from dcn_det.errors import UserError

FILE = ".lock"
"""Name of the lock file; it contains process id and host of the run that uses the folder."""


@contextlib.contextmanager
def exclusive(folder: Path, processes: Processes) -> Iterator[None]:
    """Reserves an output folder for this run while the block is executed.

    The operating system releases the lock when the process ends, however it ends. The main process locks for all
    processes of a run. Missing folders are created, and removed again if they are still empty at the end. On file
    systems without locks, the block is executed without one.

    Args:
        folder: the output folder.
        processes: the processes of the run; all must enter and leave the block.

    Raises:
        UserError: another run uses the folder; the message gives its process id and host.
        OSError: the folder cannot be created or written to.
    """
    handle, refusal = None, None
    created: list[Path] = []
    try:
        if processes.main:
            try:
                created = [each for each in (folder, *folder.parents) if not each.exists()]
                folder.mkdir(parents=True, exist_ok=True)
                handle = _lock(folder / FILE)
            except (UserError, OSError) as error:
                refusal = error
        refusal = processes.share(refusal)
        if refusal is not None:
            raise refusal
        yield
    finally:
        if handle is not None:
            with contextlib.suppress(OSError):
                (folder / FILE).unlink()  # before the lock is released, so that it cannot be another run's file
            os.close(handle)
        with contextlib.suppress(OSError):
            for each in created:
                each.rmdir()


def _lock(path: Path) -> int | None:
    """Creates and locks a file; returns its descriptor, or None if the file system has no locks.

    A lock of this kind (POSIX) is not inherited by the processes of the data loader, so it ends with this process
    even if they outlive it.
    """
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is(path, handle):
                break
            os.close(handle)  # the run that held the lock has removed the file; try again with a new one
        except OSError as error:
            holder = os.read(handle, 1000).decode(errors="replace").strip()
            os.close(handle)
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                return None
            raise UserError(
                f"'{path.parent}' is in use by another run{f' ({holder})' if holder else ''}; wait for it, stop it, or "
                "choose another --output"
            ) from None
    os.ftruncate(handle, 0)
    os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return handle


def _is(path: Path, handle: int) -> bool:
    """Returns whether a descriptor is that of the file at a path."""
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False
