"""The original Caffe release of ResNet in the forms in which PyTorch users pass it on.

Three spellings are read: Detectron's pickles (``res4_22_branch2b_w``, batch norm merged into scale and shift), Caffe's
own layer names (``res4b22_branch2b.weight``, batch norm and scale apart), and torchvision's names. In all of them the
first convolution takes blue, green, red.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dcn_det.errors import UserError
from dcn_det.weights.files import missing_file, read_state_dict
from dcn_det.weights.resnet_names import block_modules, caffe2_name, caffe_layer, renamed

_STATISTICS = ("running_mean", "running_var")
_BLOCKS_IN_PICKLES = ("blobs", "model", "state_dict")


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Tensors by name from a pickle of arrays (``.pkl``) or any file that PyTorch reads.

    Raises:
        UserError: no such file, damaged, or it holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise missing_file(path)
    if path.suffix != ".pkl":
        return read_state_dict(path)
    try:
        with path.open("rb") as file:
            content = _ArrayUnpickler(file, encoding="latin1").load()
    except Exception as error:  # a damaged pickle raises nearly anything
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"cannot read weights from {path}; truncated, or not a pickle of arrays? ({reason})") from error
    for key in _BLOCKS_IN_PICKLES:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{path} holds no arrays by name but a {type(content).__name__}")
    return {
        str(name): torch.from_numpy(np.ascontiguousarray(value))
        for name, value in content.items()
        if isinstance(value, np.ndarray) and value.dtype.kind == "f" and not str(name).endswith("_momentum")
    }


class _ArrayUnpickler(pickle.Unpickler):
    """Makes NumPy arrays and plain containers and nothing else, so that a file cannot run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no array")


def _empty_array(kind: Any, shape: Any, code: Any) -> np.ndarray:
    """An array whose shape and values follow; the shape given here is never believed."""
    return np.ndarray((0,), np.uint8)


def _array_of(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    return np.frombuffer(data, dtype).reshape(shape, order=order)


def _number(dtype: Any, data: Any) -> Any:
    return np.frombuffer(data, dtype)[0]


def _encode(text: str, encoding: str = "latin1") -> bytes:
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encode,
    ("numpy", "ndarray"): object,  # only ever named, to functions that do not look at it
    ("numpy", "dtype"): np.dtype,
    **{
        (f"numpy.{core}.{module}", name): function
        for core in ("core", "_core")
        for module, name, function in (
            ("multiarray", "_reconstruct", _empty_array),
            ("multiarray", "scalar", _number),
            ("numeric", "_frombuffer", _array_of),
        )
    },
}


def to_our_names(state: Mapping[str, Tensor], kind: str, eps: float) -> dict[str, Tensor]:
    """Renames the parameters of any of the three spellings; unknown names stay as they are.

    Batch norm without statistics, merged into scale and shift, gets a mean of 0 and a variance of ``1 - eps``, with
    which it is exactly that scale and shift.

    Args:
        state: tensors by name.
        kind: of the backbone, such as ``resnet101``.
        eps: added to variances.

    Raises:
        UserError: two names are for the same parameter.
    """
    blocks = block_modules(kind)
    ours = {new: state[old] for new, old in renamed(state, lambda name: _our_name(name, blocks)).items()}
    if not any(name.endswith(_STATISTICS) for name in ours):
        for name in [name for name, value in ours.items() if value.ndim == 1 and name.endswith(".weight")]:
            layer, channels = name.rpartition(".")[0], len(ours[name])
            ours[f"{layer}.running_mean"] = torch.zeros(channels)
            ours[f"{layer}.running_var"] = torch.full((channels,), 1 - eps)
    # Some conversions give the first convolution a bias of zeros.
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
    """The same weights for images whose channels come in the opposite order."""
    return {
        name: value.flip(1) if name == "conv1.weight" and value.ndim == 4 else value for name, value in state.items()
    }
