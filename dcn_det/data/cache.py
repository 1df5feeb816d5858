"""Cache of decoded images in files, on disk or in memory, shared by all processes of the machine."""

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
"""Share of the file system that the cache leaves free."""
_MEMORY = Path("/dev/shm")


class ImageCache:
    """Cache of images by file and form, shared by loader processes and ranks.

    The key of an entry includes path, size and modification time of the image file, so a changed file gets a new
    entry. When the file system is nearly full, no more images are added.

    Args:
        folder: folder of the cache, created if absent.

    Raises:
        UserError: the folder cannot be created.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"data.cache_folder: cannot create {folder}: {error.strerror}") from error
        self._full = False

    @classmethod
    def in_memory(cls) -> ImageCache:
        """Returns a cache in memory for all processes of a run on this machine; local rank 0 deletes it on exit.

        Raises:
            UserError: the system has no file system in memory.
        """
        if not _MEMORY.is_dir():
            raise UserError(f"data.cache: ram requires {_MEMORY}, which is absent; use disk and set data.cache_folder")
        # Ranks of one run share a parent process, the launcher; a run without a launcher uses its own process id.
        launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
        folder = _MEMORY / f"dcn_det-{os.getuid()}-{os.getppid() if launched else os.getpid()}"
        if os.environ.get("LOCAL_RANK", "0") == "0":
            owner = os.getpid()
            atexit.register(lambda: shutil.rmtree(folder, ignore_errors=True) if os.getpid() == owner else None)
        return cls(folder)

    def get(self, path: Path, form: str, make: Callable[[], Image]) -> Image:
        """Returns the image of a file in a form; calls ``make`` if it is not in the cache.

        Args:
            path: file of the image.
            form: name of the form, such as its size.
            make: returns the image.

        Returns:
            uint8 (H, W, 3); must not be modified.
        """
        try:
            status = path.stat()
        except OSError:
            return make()  # raises an error that names the file
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
