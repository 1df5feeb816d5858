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


COUNTER = "num_batches_tracked"
"""Buffer of batch norm that only a momentum of None reads, which is not used here."""


def differences_of(
    expected: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    *,
    optional: Sequence[str] = (),
    names: Mapping[str, str] | None = None,
) -> list[str]:
    """Compares tensors by name and shape; batch counters are left out.

    Args:
        expected: the tensors of a network.
        given: those of a file, under the network's names.
        optional: endings of expected names that may be missing.
        names: what the file calls its tensors, by the network's names.

    Returns:
        One short text per difference; empty when everything fits.
    """
    ours = {name: value for name, value in expected.items() if not name.endswith(COUNTER)}
    theirs = {name: value for name, value in given.items() if not name.endswith(COUNTER)}
    found = [
        f"{name} {shape_of(value)} is missing"
        for name, value in ours.items()
        if name not in theirs and not name.endswith(tuple(optional))
    ]
    found += [
        f"{name} {shape_of(value)} is not part of the network" for name, value in theirs.items() if name not in ours
    ]
    for name, value in ours.items():
        if name in theirs and theirs[name].shape != value.shape:
            called = f"{name} ({names[name]})" if names and name in names else name
            found.append(f"{called} is {shape_of(theirs[name])} instead of {shape_of(value)}")
    return found


def load_into(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    source: str | Path,
    ignored: Sequence[str] = (),
    optional: Sequence[str] = (),
) -> None:
    """Copies tensors into a module by name; every name and shape has to fit.

    Args:
        module: receives the tensors.
        state: tensors by name.
        source: file or origin of the tensors, for messages.
        ignored: beginnings of names in ``state`` that the module does not use.
        optional: endings of names in ``module`` that may keep their initial values.

    Raises:
        UserError: naming the first tensors that are missing, surplus or of another shape; the module is unchanged.
    """
    given = {name: value for name, value in state.items() if not name.startswith(tuple(ignored))}
    refuse(differences_of(module.state_dict(), given, optional=optional), f"weights from '{source}'")
    own = module.state_dict().keys()
    # Counters that the module lacks, or the file, do not matter.
    module.load_state_dict({name: value for name, value in given.items() if name in own}, strict=False)


def refuse(differences: Sequence[str], what: str, listed: int = _LISTED) -> None:
    """Raises a UserError that lists differences between weights and the network of the config, one per line."""
    if not differences:
        return
    lines = [f"{what} do not fit the network of the config, {len(differences)} differences:", *differences[:listed]]
    if len(differences) > listed:
        lines.append(f"and {len(differences) - listed} more")
    raise UserError("\n".join(lines))


def shape_of(value: Tensor) -> str:
    """Formats a shape, such as ``64x3x7x7``."""
    return "x".join(map(str, value.shape)) or "scalar"
