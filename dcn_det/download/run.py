"""Downloading parts of a collection into a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dcn_det.download.catalog import Part
from dcn_det.download.extract import check_space, extract, gigabytes
from dcn_det.download.fetch import fetch, verify
from dcn_det.errors import UserError
from dcn_det.progress import Say


def missing(parts: Mapping[str, Part], folder: Path) -> dict[str, Part]:
    """Returns the parts that are not complete in a folder."""
    return {name: part for name, part in parts.items() if not part.present(folder)}


def space(parts: Mapping[str, Part], folder: Path) -> int:
    """Returns the bytes that must be free to get parts one after the other, each archive deleted once extracted."""
    kept = peak = 0
    for part in parts.values():
        files = (folder / part.name, folder / f"{part.name}.part")
        peak = max(
            peak, kept + part.unpacked + part.size - sum(each.stat().st_size for each in files if each.is_file())
        )
        kept += part.unpacked or part.size
    return peak


def plan(parts: Mapping[str, Part], folder: Path) -> str:
    """Describes parts on one line each, and in total."""
    wanted = missing(parts, folder)
    width = max(map(len, parts))
    lines = [
        f"{name:<{width}}  {gigabytes(part.size):>8}  {'missing' if name in wanted else 'present'}"
        for name, part in parts.items()
    ]
    total, needed = sum(part.size for part in wanted.values()), space(wanted, folder)
    if wanted:
        lines.append(f"to download: {gigabytes(total)} into '{folder}'; disk space needed: {gigabytes(needed)}")
    return "\n".join(lines)


def download(parts: Mapping[str, Part], folder: Path, base: str, say: Say) -> None:
    """Gets the parts that are not complete; an interrupted call can be repeated.

    Archives are verified, extracted and deleted. An archive that is already in the folder is used.

    Args:
        parts: parts by name.
        folder: folder to write to, created if absent.
        base: address of the collection or of a mirror with the same paths.
        say: receives a line for each finished part.

    Raises:
        UserError: a part cannot be downloaded or extracted, or the disk has too little space for all of them.
    """
    wanted = missing(parts, folder)
    check_space(folder, space(wanted, folder), "for these parts and their archives")
    for name, part in wanted.items():
        archive = folder / part.name
        if archive.is_file():
            verify(archive, part.digest)
        else:
            try:
                fetch(f"{base.rstrip('/')}/{part.path}", archive, part.digest)
            except UserError as error:
                advice = f"run the command again to continue, or put {part.name} into '{folder}' and run it"
                raise UserError(f"{error}; {advice}") from None
        if part.unpacked:
            extract(archive, folder)
            archive.unlink()
        say(f"{name}: complete")
