"""Reads and writes files of weights: those of ``torch.save``, and ``.safetensors``.

Checksums and the cost of loading are checked before loading. Only tensors and plain containers are loaded, so a file
cannot run code.
"""

from __future__ import annotations

import json
import mmap
import re
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from dcn_det.errors import UserError, did_you_mean
from dcn_det.weights.pickles import check_pickle

SAFETENSORS = ".safetensors"
"""Suffix of files that hold the tensors of ``model`` in that format, and the rest as JSON in the header."""

_REST, _CHECKSUM = "dcn_det", "dcn_det_crc32"
"""Keys in the header of a ``.safetensors`` file."""
_ZIP = b"PK\x03\x04"
_LEGACY_PICKLES = 5
"""Pickles at the start of a file of ``torch.save`` before version 1.6: magic, version, machine, content, storages."""
_DTYPES = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
)
_READABLE = 200
"""Maximum number of characters in a message from a file or another library."""


def read(path: Path) -> Any:
    """Reads a file onto the CPU.

    Args:
        path: written by ``torch.save``, or, by its suffix, in the ``.safetensors`` format.

    Returns:
        The object that was saved. Of a ``.safetensors`` file, the tensors by name under ``model``, next to what
        :func:`write` stored with them.

    Raises:
        UserError: there is no such file, or it cannot be read, is truncated or damaged, holds anything but tensors and
            plain containers, or would cost more to load than its size warrants.
    """
    if not path.is_file():
        raise missing_file(path)
    try:
        return _read_safetensors(path) if path.suffix == SAFETENSORS else _read_torch(path)
    except Exception as error:  # torch raises many kinds for a damaged archive
        kind = "safetensors" if path.suffix == SAFETENSORS else "PyTorch"
        raise unreadable(path, error, f"not a {kind} file") from error


def missing_file(path: Path) -> UserError:
    """Returns the error for a file of weights that does not exist, with the nearest name in its folder."""
    siblings = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
    return UserError(f"no such weights file: {path}{did_you_mean(path.name, siblings)}")


def unreadable(path: Path, error: Exception, otherwise: str) -> UserError:
    """Returns the error for a file that a library cannot read.

    Args:
        path: the file.
        error: raised by the library. Its advice to load unsafely is left out.
        otherwise: what the file may be if it is not damaged.
    """
    if isinstance(error, OSError) and error.strerror:
        return UserError(f"cannot read weights from '{path}': {error.strerror}")
    text = str(error)
    if "weights_only" in text or "Weights only" in text:
        asked = re.search(r"GLOBAL ([\w.]+)", text)
        reason = f"it contains {asked[1]}" if asked else "it contains other objects"
        reason += "; only tensors and plain containers are loaded"
    else:
        reason = readable(text.strip().partition("\n")[0]) or type(error).__name__
    return UserError(f"cannot read weights from '{path}'; it is truncated or damaged, or {otherwise} ({reason})")


def readable(text: object) -> str:
    """Makes a name from a file, or another library's message, fit into one line."""
    return "".join(each if each.isprintable() else "?" for each in str(text)[:_READABLE])


def _read_torch(path: Path) -> Any:
    with path.open("rb") as file:
        if file.read(len(_ZIP)) == _ZIP:
            _check_archive(file)
        else:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                for _ in range(_LEGACY_PICKLES):
                    check_pickle(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of unusual files, with advice to load unsafely
        return torch.load(path, map_location="cpu", weights_only=True)


def _check_archive(file: IO[bytes]) -> None:
    """Checks what torch does not check: the archive's checksums, and the cost of loading.

    Raises:
        ValueError, zipfile.BadZipFile: the archive is damaged, or not as ``torch.save`` writes it.
    """
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        compressed = [each.filename for each in entries if each.compress_type != zipfile.ZIP_STORED]
        if compressed:
            raise ValueError(f"'{compressed[0]}' is compressed, which torch.save never does")
        size = file.seek(0, 2)
        if sum(each.file_size for each in entries) > size or len({each.filename for each in entries}) < len(entries):
            raise ValueError("parts of the archive overlap")
        damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"wrong checksum of '{damaged}'")
        for entry in entries:
            if entry.filename.endswith(".pkl"):
                check_pickle(BytesIO(archive.read(entry)))


def _read_safetensors(path: Path) -> dict[str, Any]:
    with safetensors.safe_open(path, framework="pt") as file:
        header = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    rest = header.get(_REST, "{}")
    if _REST in header and not header.keys() <= {"format", _REST, _CHECKSUM}:
        raise ValueError("unknown keys in its header")  # perhaps that of the checksum, damaged
    # Other programs write no checksum, nor did earlier versions.
    if _CHECKSUM in header and header[_CHECKSUM] != _checksum(tensors, rest):
        raise ValueError("wrong checksum")
    content = json.loads(rest)
    if not isinstance(content, dict):
        raise ValueError(f"'{_REST}' in its header is no object")
    return {**content, "model": tensors}


def write(file: IO[bytes], content: Mapping[str, Any], suffix: str) -> None:
    """Writes tensors and plain containers.

    Args:
        file: open for writing.
        content: in a ``.safetensors`` file, all tensors are under ``model``, and the rest is stored as JSON.
        suffix: of the file's name, which determines the format.
    """
    if suffix != SAFETENSORS:
        torch.save(dict(content), file)
        return
    tensors = {name: value.cpu().contiguous() for name, value in content["model"].items()}
    rest = json.dumps({key: value for key, value in content.items() if key != "model"})
    header = {"format": "pt", _REST: rest, _CHECKSUM: _checksum(tensors, rest)}
    file.write(safetensors.torch.save(tensors, header))


def _checksum(tensors: Mapping[str, Tensor], rest: str) -> str:
    """CRC-32 of names, dtypes, shapes and values of all tensors, and of the text stored with them."""
    checksum = zlib.crc32(rest.encode())
    for name, value in sorted(tensors.items()):
        checksum = zlib.crc32(f"{name} {value.dtype} {tuple(value.shape)}".encode(), checksum)
        checksum = zlib.crc32(value.reshape(-1).view(torch.uint8).numpy().data, checksum)
    return f"{checksum:08x}"


def check_tensors(content: Mapping[Any, Any]) -> str | None:
    """Returns what is wrong with tensors by name from a file, or None if all of their values can be used."""
    for name, value in content.items():
        if not (isinstance(name, str) and is_name(name)):
            return f"'{readable(name)}' is not a name of a tensor"
        if not isinstance(value, Tensor):
            return f"'{name}' is a {type(value).__name__} instead of a tensor"
        if value.layout is not torch.strided or value.device.type != "cpu" or value.dtype not in _DTYPES:
            return f"'{name}' is an unsupported kind of tensor ({value.dtype}, {value.layout}, {value.device})"
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            return f"'{name}' has more elements than are stored"
    return None


def is_name(name: str) -> bool:
    """Whether a tensor may have this name, which then fits into a message."""
    return len(name) <= _READABLE and name.isprintable()
