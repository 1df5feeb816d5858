"""Reads MXNet's ``.params`` files without MXNet.

A file is little-endian: uint64 0x112, uint64 0; a count and the arrays; a count and the names, each a length and
bytes. An array consists of its shape, in one of four layouts that a leading magic number identifies, its device, its
dtype and its values in C order.

Sizes in headers are not trusted: nothing is allocated beyond the rest of the file.
"""

from __future__ import annotations

import os
import struct
from collections import Counter
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from dcn_det.errors import UserError
from dcn_det.weights.storage import is_name, missing_file

LIST_MAGIC = 0x112
V1, V2, V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
DTYPES = {0: "<f4", 1: "<f8", 2: "<f2", 3: "|u1", 4: "<i4", 5: "|i1", 6: "<i8"}
SPARSE = {1: "row-sparse", 2: "compressed sparse row"}
MAX_DIMENSIONS = 32
"""Maximum number of dimensions of an array; weights have at most four."""

Array = NDArray[np.generic]


def is_params(path: Path) -> bool:
    """Whether a file begins like a ``.params`` file."""
    with path.open("rb") as file:
        return file.read(8) == struct.pack("<Q", LIST_MAGIC)


def read_params(path: str | Path) -> dict[str, Array]:
    """Reads all arrays of a ``.params`` file.

    Args:
        path: written by MXNet with names, which start with ``arg:`` or ``aux:`` where a network was saved.

    Returns:
        Arrays by name, in the file's order; float32, float64, float16, uint8, int32, int8 or int64.

    Raises:
        UserError: there is no such file, or it is truncated or malformed; the message says where.
    """
    path = Path(path)
    if not path.is_file():
        raise missing_file(path)
    with path.open("rb") as file:
        reader = _Reader(file, path)
        magic, reserved = reader.number("<Q"), reader.number("<Q")
        if magic != LIST_MAGIC or reserved != 0:
            raise reader.error(
                f"not an MXNet .params file, it begins with {magic:#x} {reserved:#x} instead of 0x112 0x0"
            )
        reader.part = "the number of arrays"
        count = reader.number("<Q")
        arrays = []
        for index in range(count):  # ends with the file, however large the count
            reader.part = f"array {index + 1} of {count}"
            arrays.append(_array(reader))
        reader.part = "the number of names"
        if (named := reader.number("<Q")) != count:
            raise reader.error(f"{named} names for {count} arrays")
        names = []
        for index in range(count):
            reader.part = f"name {index + 1} of {count}"
            names.append(_name(reader))
        reader.part = "the end"
        if reader.left:
            raise reader.error(f"{reader.left} more bytes than its headers state")
    repeated = [name for name, times in Counter(names).items() if times > 1]
    if repeated:
        raise reader.error(f"the name '{repeated[0]}' occurs twice")
    return dict(zip(names, arrays))


class _Reader:
    """A file, its number of bytes left, and the part that is being read, for messages."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path
        self.left = os.fstat(file.fileno()).st_size
        self.part = "the header"

    def error(self, problem: str) -> UserError:
        return UserError(f"cannot read weights from {self._path}: {problem} (at {self.part})")

    def take(self, size: int) -> bytes:
        if size > self.left:
            raise self.error(f"truncated or damaged, {size} bytes should follow, but {self.left} are left")
        data = self._file.read(size)
        self.left -= size
        if len(data) != size:
            raise self.error("the file became shorter while it was read")
        return data

    def number(self, kind: str) -> int:
        value: int = struct.unpack(kind, self.take(struct.calcsize(kind)))[0]
        return value


def _array(reader: _Reader) -> Array:
    shape = _shape(reader)
    if shape is None:
        raise reader.error("an array without shape and values")
    reader.take(8)  # type and number of the device
    code = reader.number("<i")
    if code not in DTYPES:
        known = ", ".join(f"{each} {np.dtype(name).name}" for each, name in DTYPES.items())
        raise reader.error(f"unknown dtype {code}; known are {known}")
    dtype = np.dtype(DTYPES[code])
    # Zero is a valid extent, but the product of the others must still fit into an index.
    if min(shape, default=1) < 0 or prod(max(extent, 1) for extent in shape) * dtype.itemsize >= 2**62:
        raise reader.error(f"truncated or damaged, an array of shape {shape} is impossible")
    data = reader.take(prod(shape) * dtype.itemsize)
    return np.frombuffer(data, dtype).reshape(shape)


def _shape(reader: _Reader) -> tuple[int, ...] | None:
    """Reads the shape of the next array; None if the layout says that there is no array."""
    magic = reader.number("<I")
    extent, none = "<q", 0
    if magic == V1:
        dimensions = reader.number("<I")
    elif magic in (V2, V3):
        storage = reader.number("<i")
        if storage in SPARSE:
            raise reader.error(f"a {SPARSE[storage]} array; only dense ones are supported")
        if storage != 0:
            raise reader.error(f"unknown storage type {storage}; known are 0 dense, 1 row-sparse, 2 sparse")
        dimensions = reader.number("<i")
        if magic == V3:  # NumPy's rules: no dimensions make a scalar
            none = -1
    else:
        dimensions, extent = magic, "<I"
    if dimensions == none:
        return None
    if not 0 <= dimensions <= MAX_DIMENSIONS:
        raise reader.error(
            f"unknown layout {magic:#x}" if extent == "<I" else f"{dimensions} dimensions, at most {MAX_DIMENSIONS}"
        )
    return tuple(reader.number(extent) for _ in range(dimensions))


def _name(reader: _Reader) -> str:
    try:
        name = reader.take(reader.number("<Q")).decode()
    except UnicodeDecodeError as error:
        raise reader.error(f"the name is not text ({error.reason})") from None
    if not is_name(name):
        raise reader.error("the name is too long or contains control characters")
    return name
