"""Writes MXNet's ``.params`` files, from the format's description and apart from the reader."""

import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

CODES = {"float32": 0, "float64": 1, "float16": 2, "uint8": 3, "int32": 4, "int8": 5, "int64": 6}
LAYOUTS = ("legacy", "v1", "v2", "v3")


def array_header(shape: tuple[int, ...], layout: str) -> bytes:
    """Everything up to the device, whatever the shape."""
    if layout == "legacy":
        return struct.pack(f"<I{len(shape)}I", len(shape), *shape)
    dims = struct.pack(f"<I{len(shape)}q", len(shape), *shape)
    if layout == "v1":
        return struct.pack("<I", 0xF993FAC8) + dims
    return struct.pack("<Ii", {"v2": 0xF993FAC9, "v3": 0xF993FACA}[layout], 0) + dims


def array_bytes(value: np.ndarray, layout: str = "v1", device: tuple[int, int] = (1, 0)) -> bytes:
    little = np.ascontiguousarray(value).astype(value.dtype.newbyteorder("<"))
    code = CODES[value.dtype.name]
    return array_header(value.shape, layout) + struct.pack("<iii", *device, code) + little.tobytes()


def file_bytes(arrays: list[bytes], names: list[str]) -> bytes:
    parts = [struct.pack("<QQQ", 0x112, 0, len(arrays)), *arrays, struct.pack("<Q", len(names))]
    parts += [struct.pack("<Q", len(name.encode())) + name.encode() for name in names]
    return b"".join(parts)


def write_params(path: Path, values: Mapping[str, np.ndarray], layout: str = "v1") -> None:
    path.write_bytes(file_bytes([array_bytes(value, layout) for value in values.values()], list(values)))
