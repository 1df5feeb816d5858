"""Writing of generated data sets: complete or not at all, and only once."""

from __future__ import annotations

import contextlib
import json
import shutil
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2

from dcn_det.errors import UserError
from dcn_det.images import Image
from dcn_det.progress import Count

_JPEG_QUALITY = 92

Write = Callable[[Path, Callable[[], None]], None]
"""Writes a data set to a folder, which it creates, and calls its second argument after each image."""


@dataclass(frozen=True)
class Stamp:
    """Arguments that a data set was made with, stored in a file of its folder, the record."""

    version: int
    seed: int
    train_images: int
    val_images: int


def generate(root: Path, record: str, stamp: Stamp, write: Write, progress: Count | None = None) -> Path:
    """Writes a data set unless ``root`` already contains it.

    It is written to a folder next to ``root`` and then renamed, so ``root`` is never incomplete, and several processes
    can call this at the same time.

    Args:
        root: folder of the data set.
        record: name of the file for ``stamp``.
        stamp: what to write.
        write: writes the other files.
        progress: called after each image with the number of images written and their total number.

    Returns:
        ``root``.

    Raises:
        UserError: ``root`` contains other files; see ``write``.
        OSError: the files cannot be written.
    """
    found = _read_stamp(root, record)
    if found == stamp:
        return root
    if root.exists() and found is None and (not root.is_dir() or any(root.iterdir())):
        what = Path(record).stem
        raise UserError(f"{root} exists and is not a {what} data set; choose an empty or a new folder")
    staging = root.parent / f".{root.name}-{uuid.uuid4().hex}"
    done = 0

    def count_one() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, stamp.train_images + stamp.val_images)

    try:
        write(staging, count_one)
        (staging / record).write_text(json.dumps(asdict(stamp)) + "\n", encoding="utf-8")
        _publish(staging, root, record, stamp)
    except OSError as error:  # the system names no file when a disk is full
        raise OSError(error.errno, error.strerror, error.filename or str(root)) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return root


def holds(root: str | Path, record: str, version: int) -> bool:
    """Returns whether ``root`` contains a data set of this version, of any size and seed."""
    stamp = _read_stamp(Path(root), record)
    return stamp is not None and stamp.version == version


def write_jpeg(path: Path, image: Image) -> None:
    """Writes an image, uint8 (H, W, 3) RGB, as JPEG."""
    ok, jpeg = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    assert ok
    path.write_bytes(jpeg.tobytes())


def _read_stamp(root: Path, record: str) -> Stamp | None:
    try:
        return Stamp(**json.loads((root / record).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _publish(staging: Path, root: Path, record: str, stamp: Stamp) -> None:
    """Renames ``staging`` to ``root``; replaces an outdated set, but keeps one that another process wrote meanwhile."""
    if root.exists() and _read_stamp(root, record) != stamp:
        outdated = root.parent / f".{root.name}-{uuid.uuid4().hex}"
        with contextlib.suppress(FileNotFoundError):  # another process has just done the same
            root.rename(outdated)
        shutil.rmtree(outdated, ignore_errors=True)
    try:
        staging.rename(root)
    except OSError:
        if _read_stamp(root, record) != stamp:
            raise
