"""Decoded images kept as files, on a disk or in memory, for all processes of the machine."""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dcn_det.errors import UserError
from dcn_det.images import Image

_ROOM = 0.1
"""Share of the file system that is left free."""
_MEMORY = Path("/dev/shm")


class ImageCache:
    """Images by file and form. Loader processes and ranks share them, as the operating system shares files.

    An entry is named by path, size and time of its file, so that a changed file is another entry. What cannot be kept
    for want of room is made each time.

    Args:
        folder: made when missing.

    Raises:
        UserError: the folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"data.cache_folder: cannot make {folder}: {error.strerror}") from error
        self._full = False

    @classmethod
    def in_memory(cls) -> ImageCache:
        """A cache in memory, one for all processes of a run on this machine; it goes when the first of them ends."""
        if not _MEMORY.is_dir():
            raise UserError(f"data.cache: ram needs {_MEMORY}, which is not there; say disk and give data.cache_folder")
        # Ranks of one run have the same parent, the launcher; a run of one process is on its own.
        launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
        folder = _MEMORY / f"dcn_det-{os.getuid()}-{os.getppid() if launched else os.getpid()}"
        if os.environ.get("LOCAL_RANK", "0") == "0":
            owner = os.getpid()
            atexit.register(lambda: shutil.rmtree(folder, ignore_errors=True) if os.getpid() == owner else None)
        return cls(folder)

    def get(self, path: Path, form: str, make: Callable[[], Image]) -> Image:
        """The image of a file in a form, made by ``make`` the first time.

        Returns:
            uint8 (H, W, 3); not to be written to.
        """
        try:
            status = path.stat()
        except OSError:
            return make()  # says what is wrong
        text = f"{path.absolute()}\0{status.st_size}\0{status.st_mtime_ns}\0{form}"
        name = hashlib.sha256(text.encode()).hexdigest()
        entry = self.folder / name[:2] / f"{name}.npy"
        try:
            return np.asarray(np.load(entry), dtype=np.uint8)
        except (OSError, ValueError, EOFError):
            image = make()
            self._keep(entry, image)
            return image

    def _keep(self, entry: Path, image: Image) -> None:
        if self._full:
            return
        try:
            usage = shutil.disk_usage(self.folder)
            if usage.free - image.nbytes < _ROOM * usage.total:
                self._full = True
                return
            entry.parent.mkdir(exist_ok=True)
            handle, name = tempfile.mkstemp(dir=entry.parent)
            try:
                with os.fdopen(handle, "wb") as file:
                    np.save(file, image)
                Path(name).replace(entry)
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise
        except OSError:
            self._full = True
