"""Runs the CUDA kernels without a GPU, compiled for the host by the shim in ``on_host``, and checks every access."""

from __future__ import annotations

import ctypes
import fcntl
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

FOLDER = Path(__file__).with_name("on_host")
CSRC = Path(__file__).parents[2] / "dcn_det" / "ops" / "csrc"
TORCH = Path(torch.__file__).parent / "include"
SHIM = FOLDER / "cuda_on_host.cpp"  # the only source compiled without sanitizers
WATCHED = ["-fsanitize=thread", "-fsanitize=undefined,float-cast-overflow", "-fno-sanitize-recover=all"]
DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}


def build(folder: Path) -> Path:
    """Compiles all sources of ``on_host`` into one library, which parallel test processes share."""
    library = folder / "cuda_on_host.so"
    with (folder / "cuda_on_host.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            with ThreadPoolExecutor(2) as pool:
                objects = list(pool.map(lambda source: _compile(source, folder), sorted(FOLDER.glob("*.cpp"))))
            unfinished = library.with_suffix(".tmp")
            _run("-shared", "-Wl,-z,defs", *map(str, objects), "-o", str(unfinished))
            unfinished.rename(library)
    return library


def _compile(source: Path, folder: Path) -> Path:
    target = folder / f"{source.stem}.o"
    flags = [
        "-std=c++20",
        "-O1",
        "-g1",
        "-fPIC",
        "-ffp-contract=off",
        "-Wall",
        "-Wextra",
        "-Wno-unknown-pragmas",
        "-Werror",
    ]
    folders = [f"-I{FOLDER}", f"-I{CSRC}", "-isystem", str(TORCH)]
    _run(*flags, *([] if source == SHIM else WATCHED), *folders, "-c", str(source), "-o", str(target))
    return target


def _run(*arguments: str) -> None:
    result = subprocess.run([compiler(), *arguments], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def compiler() -> str:
    """Path of GCC, whose sanitizer calls the shim implements; empty if missing."""
    return shutil.which("g++") or ""


@dataclass
class Out:
    """A tensor that kernels write; they may read only what they have written."""

    tensor: Tensor


@dataclass
class InOut:
    """A tensor that kernels read and write."""

    tensor: Tensor


class Host:
    """Functions of the library. ``seed`` determines the order in which blocks and threads run."""

    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library))
        self.library.host_error.restype = ctypes.c_char_p
        self.library.host_tensor.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_bool, ctypes.c_bool]

    def __call__(self, name: str, *arguments: object, seed: int = 0) -> None:
        """Calls a function: passes ints as int64, floats as double, dtypes as numbers, tensors and tuples by address.

        Tensors not wrapped in :class:`Out` or :class:`InOut` are read-only.

        Raises:
            AssertionError: if kernels made a mistake; the message gives its kind and place.
        """
        self.library.host_begin(ctypes.c_uint(seed))
        function = getattr(self.library, name)
        function.restype = None
        function(*[self._convert(argument) for argument in arguments])
        error = self.library.host_error().decode()
        assert not error, f"{name}: {error}"

    def _convert(self, argument: object) -> object:
        if isinstance(argument, torch.dtype):
            return ctypes.c_int64(DTYPES[argument])
        if isinstance(argument, tuple):
            return (ctypes.c_int64 * len(argument))(*argument)
        if isinstance(argument, float):
            return ctypes.c_double(argument)
        if isinstance(argument, int):
            return ctypes.c_int64(argument)
        if argument is None:
            return ctypes.c_void_p(None)
        tensor = argument if isinstance(argument, Tensor) else argument.tensor  # type: ignore[attr-defined]
        size = tensor.untyped_storage().nbytes() - tensor.storage_offset() * tensor.element_size()
        kinds = (not isinstance(argument, Tensor), not isinstance(argument, Out))
        self.library.host_tensor(tensor.data_ptr(), size, *kinds)
        return ctypes.c_void_p(tensor.data_ptr())
