"""Reads the original Caffe release of ResNet in the forms in which it circulates.

Three naming schemes are supported: Detectron's pickles (``res4_22_branch2b_w``, batch norm merged into scale and
shift), Caffe's layer names (``res4b22_branch2b.weight``, batch norm and scale separate), and torchvision's names. In
all of them, the first convolution takes blue, green, red.
"""

from __future__ import annotations

import math
import mmap
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dcn_det.errors import UserError
from dcn_det.weights.files import read_state_dict
from dcn_det.weights.pickles import check_pickle
from dcn_det.weights.resnet_names import block_modules, caffe2_name, caffe_layer, renamed
from dcn_det.weights.storage import check_tensors, missing_file, readable, unreadable

_STATISTICS = ("running_mean", "running_var")
_BLOCKS_IN_PICKLES = ("blobs", "model", "state_dict")


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Reads tensors by name from a pickle of arrays (``.pkl``) or any file that PyTorch reads.

    Raises:
        UserError: there is no such file, or it cannot be read, is damaged or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise missing_file(path)
    if path.suffix != ".pkl":
        return read_state_dict(path)
    try:
        content = _unpickle(path)
    except Exception as error:  # a damaged pickle raises nearly anything
        raise unreadable(path, error, "not a pickle of arrays") from error
    for key in _BLOCKS_IN_PICKLES:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content:
        raise UserError(f"'{path}' does not hold arrays by name")
    arrays = {
        name: value
        for name, value in content.items()
        if isinstance(value, _Array) and value.floating and not str(name).endswith("_momentum")
    }
    try:
        tensors = {name: torch.from_numpy(value.numpy()) for name, value in arrays.items()}
    except Exception as error:
        raise unreadable(path, error, "not a pickle of arrays") from error
    problem = check_tensors(tensors)
    if problem is not None:
        raise UserError(f"'{path}' does not hold arrays by name: {problem}")
    return tensors


def _unpickle(path: Path) -> Any:
    with path.open("rb") as file:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            check_pickle(content)
        return _ArrayUnpickler(file, encoding="latin1").load()


class _DType:
    """Replaces ``numpy.dtype``, which would accept any state from a file."""

    __slots__ = ("code", "order")

    def __init__(self, code: str, *options: object) -> None:
        self.code, self.order = code, "="

    def __setstate__(self, state: Any) -> None:
        self.order = {"<": "<", ">": ">"}.get(state[1], "=")

    @property
    def floating(self) -> bool:
        return isinstance(self.code, str) and self.code[:1] == "f"

    def numpy(self) -> np.dtype[Any]:
        if self.code not in _FLOATS:
            raise ValueError(f"an array of type {readable(self.code)}")
        return np.dtype(self.order + self.code)


class _Array:
    """Replaces ``numpy.ndarray``, which would allocate any shape that a file states."""

    __slots__ = ("data", "dtype", "order", "shape")

    def __init__(self, data: Any = b"", dtype: Any = None, shape: Any = (0,), order: Any = "C") -> None:
        self.data, self.dtype, self.shape, self.order = data, dtype, shape, order

    def __setstate__(self, state: Any) -> None:
        _, self.shape, self.dtype, fortran, self.data = state
        self.order = "F" if fortran else "C"

    @property
    def floating(self) -> bool:
        return isinstance(self.dtype, _DType) and self.dtype.floating

    def numpy(self) -> np.ndarray:
        """Returns the array in the machine's byte order.

        Raises:
            Exception: type, shape and data are invalid; they may be any object.
        """
        dtype = self.dtype.numpy()
        data = self.data.encode("latin1") if isinstance(self.data, str) else self.data
        extents = isinstance(self.shape, tuple) and all(type(each) is int and each >= 0 for each in self.shape)
        if not extents or math.prod(self.shape) * dtype.itemsize != len(data):
            raise ValueError("an array whose shape does not fit its data")
        values = np.frombuffer(data, dtype) if len(data) else np.empty(0, dtype)
        return values.reshape(self.shape, order=self.order).astype(self.dtype.code, order="C")


class _Maker:
    """Replaces classes and functions in a pickle: callable, without state that the pickle could change."""

    __slots__ = ("_make",)
    _make: Callable[..., Any]

    def __init__(self, make: Callable[..., Any]) -> None:
        object.__setattr__(self, "_make", make)

    def __call__(self, *arguments: Any) -> Any:
        return self._make(*arguments)

    def __setattr__(self, name: str, value: object) -> None:
        raise pickle.UnpicklingError("it changes a function")


class _ArrayUnpickler(pickle.Unpickler):
    """Creates only arrays and plain containers, so that a file cannot run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        raise pickle.UnpicklingError(f"it contains {module}.{name}, which is no array")


_FLOATS = ("f2", "f4", "f8")
_CORES = ("numpy.core", "numpy._core")
_ALLOWED = {
    ("collections", "OrderedDict"): _Maker(dict),
    ("_codecs", "encode"): _Maker(lambda text, encoding="latin1": text.encode("latin1")),
    ("numpy", "ndarray"): _Maker(_Array),
    ("numpy", "dtype"): _Maker(_DType),
    **{(f"{core}.multiarray", "_reconstruct"): _Maker(lambda kind, shape, code: _Array()) for core in _CORES},
    **{(f"{core}.multiarray", "scalar"): _Maker(lambda dtype, data: None) for core in _CORES},
    **{(f"{core}.numeric", "_frombuffer"): _Maker(_Array) for core in _CORES},
}


def to_our_names(state: Mapping[str, Tensor], kind: str, eps: float) -> dict[str, Tensor]:
    """Renames parameters of any of the three naming schemes; unknown names are kept.

    Batch norm that is merged into scale and shift gets a mean of 0 and a variance of ``1 - eps``, which makes it
    exactly that scale and shift.

    Args:
        state: tensors by name.
        kind: kind of the backbone, such as ``resnet101``.
        eps: constant that batch norm adds to variances.

    Raises:
        UserError: two names denote the same parameter.
    """
    blocks = block_modules(kind)
    ours = {new: state[old] for new, old in renamed(state, lambda name: _our_name(name, blocks)).items()}
    if not any(name.endswith(_STATISTICS) for name in ours):
        for name in [name for name, value in ours.items() if value.ndim == 1 and name.endswith(".weight")]:
            layer, channels = name.rpartition(".")[0], len(ours[name])
            ours[f"{layer}.running_mean"] = torch.zeros(channels)
            ours[f"{layer}.running_var"] = torch.full((channels,), 1 - eps)
    # Some conversions add a bias of zeros to the first convolution.
    if "conv1.bias" in ours and not ours["conv1.bias"].any():
        del ours["conv1.bias"]
    return ours


def _our_name(name: str, blocks: Mapping[str, str]) -> str | None:
    if (ours := caffe2_name(name)) is not None:
        return ours
    layer, _, parameter = name.rpartition(".")
    module = caffe_layer(layer, blocks)
    return None if module is None else f"{module}.{parameter}"


def bgr_to_rgb(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the weights for images with the opposite order of channels."""
    return {
        name: value.flip(1) if name == "conv1.weight" and value.ndim == 4 else value for name, value in state.items()
    }
