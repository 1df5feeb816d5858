"""Extraction of archives that stays inside a folder."""

from __future__ import annotations

import io
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from dcn_det.errors import UserError
from dcn_det.progress import Progress

_FAULTS = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, RuntimeError)


def extract(archive: Path, folder: Path) -> None:
    """Extracts the regular files of a ``.zip`` or ``.tar`` archive; files that exist with the same size are kept.

    Each file appears whole or not at all, so an interrupted extraction can be repeated.

    Args:
        archive: the archive.
        folder: folder to write to, created if absent.

    Raises:
        UserError: the archive is damaged, has a member that is a link or a device or leaves ``folder``, or needs more
            space than is free. Nothing is written for the last two.
    """
    try:
        if archive.suffix == ".tar":
            with tarfile.open(archive) as tar:
                _extract(archive, folder, list(_tar_members(archive, tar)))
        else:
            with zipfile.ZipFile(archive) as file:
                _extract(archive, folder, list(_zip_members(archive, file)))
    except _FAULTS as error:
        raise UserError(f"{archive}: damaged archive ({error}); delete it to download it again") from None


@dataclass(frozen=True)
class _Member:
    """A file in an archive: its place below the folder, its size in bytes, and how to open it."""

    name: str
    size: int
    open: Callable[[], IO[bytes] | None]


def _check_name(archive: Path, name: str) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise UserError(f"{archive}: '{name}' would be outside the folder; nothing is extracted")


def _zip_members(archive: Path, source: zipfile.ZipFile) -> Iterator[_Member]:
    for each in source.infolist():
        _check_name(archive, each.filename)
        if stat.S_IFMT(each.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise UserError(f"{archive}: '{each.filename}' is a link or a device; nothing is extracted")
        if not each.is_dir():
            yield _Member(each.filename, each.file_size, partial(source.open, each))


def _tar_members(archive: Path, source: tarfile.TarFile) -> Iterator[_Member]:
    for each in source.getmembers():
        _check_name(archive, each.name)
        if not (each.isreg() or each.isdir()):
            raise UserError(f"{archive}: '{each.name}' is a link or a device; nothing is extracted")
        if each.isreg():
            yield _Member(each.name, each.size, partial(source.extractfile, each))


def _extract(archive: Path, folder: Path, members: list[_Member]) -> None:
    home = folder.resolve()
    for parent in sorted({(folder / member.name).parent for member in members}):
        if not parent.resolve().is_relative_to(home):
            raise UserError(f"{archive}: '{parent}' is a link out of the folder; nothing is extracted")
    missing = [member for member in members if _size(folder / member.name) != member.size]
    check_space(folder, sum(member.size for member in missing), f"to extract {archive.name}")
    progress = Progress(f"file of {archive.name}", every=5.0)
    for number, member in enumerate(missing, start=1):
        target = folder / member.name
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.part")
        with member.open() or io.BytesIO() as source, temporary.open("wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
        temporary.replace(target)
        progress(number, len(missing))
    os.sync()


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() and not path.is_symlink() else -1


def check_space(folder: Path, needed: int, what: str) -> None:
    """Checks that a disk has room.

    Args:
        folder: folder on the disk, which may not exist yet.
        needed: bytes.
        what: purpose, for the message.

    Raises:
        UserError: it has not.
    """
    existing = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise UserError(f"{folder}: {gigabytes(needed)} are needed {what}, {gigabytes(free)} are free")


def gigabytes(size: int) -> str:
    """Formats a number of bytes."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
