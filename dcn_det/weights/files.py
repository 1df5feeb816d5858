"""Weights from local PyTorch files, and their way into a module."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn

from dcn_det.errors import UserError, did_you_mean
from dcn_det.weights.checkpoint import BACKBONE, SAFETENSORS, read_safetensors

_LISTED = 5


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Reads a file of tensors by name, written by ``torch.save`` or in the ``.safetensors`` format.

    The tensors may lie under ``state_dict`` or ``model``. Names that all start with ``module.`` lose that.
    Only tensors and plain containers are unpickled, so a file cannot run code.

    Raises:
        UserError: no such file, not readable, or not tensors by name.
    """
    return read_backbone(path)[0]


def read_backbone(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """As :func:`read_state_dict`, with the settings that belong to the weights, by dotted key.

    There are none unless ``tools/convert_weights.py`` wrote the file.
    """
    path = Path(path)
    if not path.is_file():
        raise missing_file(path)
    content = _content(path)
    recorded = content.get("settings") if isinstance(content, Mapping) and content.get("part") == BACKBONE else None
    return tensors_by_name(content, path), dict(recorded or {})


def missing_file(path: Path) -> UserError:
    """The error for a weights file that is not there, naming the nearest that is."""
    siblings = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
    return UserError(f"no such weights file: {path}{did_you_mean(path.name, siblings)}")


def _content(path: Path) -> Any:
    try:
        if path.suffix == SAFETENSORS:
            tensors, rest = read_safetensors(path)
            return {**(rest or {}), "model": tensors}
        return torch.load(path, map_location="cpu", weights_only=True)
    except (
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        KeyError,
        pickle.UnpicklingError,
        safetensors.SafetensorError,
    ) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        kind = "safetensors" if path.suffix == SAFETENSORS else "PyTorch"
        raise UserError(f"cannot read weights from {path}; truncated, or not a {kind} file? ({reason})") from error


def tensors_by_name(content: Any, path: Path) -> dict[str, Tensor]:
    """The tensors in what a file held.

    Raises:
        UserError: these are not tensors by name.
    """
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{path} holds no tensors by name but a {type(content).__name__}")
    strange = [name for name, value in content.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if strange:
        raise UserError(f"{path} holds no tensors by name: '{strange[0]}' is a {type(content[strange[0]]).__name__}")
    if all(name.startswith("module.") for name in content):
        return {name.removeprefix("module."): value for name, value in content.items()}
    return dict(content)


def load_into(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    source: str,
    ignored: Sequence[str] = (),
    optional: Sequence[str] = (),
) -> None:
    """Copies tensors into a module by name.

    Args:
        module: receives the tensors.
        state: tensors by name.
        source: where they come from, for messages.
        ignored: leading parts of names in ``state`` that the module has no use for.
        optional: trailing parts of names in ``module`` that may keep their initial values.

    Raises:
        UserError: names are missing or unexpected, or shapes differ; the module is then unchanged.
    """
    counter = "num_batches_tracked"  # Only a momentum of None reads it, which is not used here.
    expected = {name: value for name, value in module.state_dict().items() if not name.endswith(counter)}
    given = {
        name: value
        for name, value in state.items()
        if not name.endswith(counter) and not name.startswith(tuple(ignored))
    }
    missing = [name for name in expected if name not in given and not name.endswith(tuple(optional))]
    unexpected = [name for name in given if name not in expected]
    misshapen = [
        f"{name} {_shape(value)} for {_shape(expected[name])}"
        for name, value in given.items()
        if name in expected and value.shape != expected[name].shape
    ]
    problems = [
        f"{len(names)} {what} ({_some(names)})"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
        if names
    ]
    if problems:
        raise UserError(f"weights from {source} do not fit the {type(module).__name__}: {'; '.join(problems)}")
    module.load_state_dict(given, strict=False)


def _shape(value: Tensor) -> str:
    return "x".join(map(str, value.shape)) or "scalar"


def _some(names: Sequence[str]) -> str:
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")
