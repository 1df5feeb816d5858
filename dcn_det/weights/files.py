"""Weights in local PyTorch files, and loading them into a module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dcn_det.errors import UserError
from dcn_det.weights import checkpoint, storage

_LISTED = 5


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Reads tensors by name from a file of ``torch.save`` or in the ``.safetensors`` format.

    The tensors may be under ``state_dict`` or ``model``. If all names start with ``module.``, this prefix is removed.

    Raises:
        UserError: there is no such file, it cannot be read (see :func:`dcn_det.weights.storage.read`), or it does not
            hold tensors by name.
    """
    return read_backbone(path)[0]


def read_backbone(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Like :func:`read_state_dict`, with the settings that belong to the weights, by dotted key.

    Only files written by ``dcn-det convert-weights`` have such settings.
    """
    path = Path(path)
    content = storage.read(path)
    ours = isinstance(content, Mapping) and content.get("format") == checkpoint.FORMAT
    if ours:
        checkpoint.check_fields(content, path)
    recorded = content.get("settings") if ours and content.get("part") == checkpoint.BACKBONE else None
    return tensors_by_name(content, path), dict(recorded or {})


def tensors_by_name(content: Any, path: Path) -> dict[str, Tensor]:
    """Returns the tensors in the content of a file.

    Raises:
        UserError: the content is not tensors by name.
    """
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"'{path}' holds a {type(content).__name__} instead of tensors by name")
    problem = storage.check_tensors(content)
    if problem is not None:
        raise UserError(f"'{path}' does not hold tensors by name: {problem}")
    prefix = "module." if all(name.startswith("module.") for name in content) else ""
    return {name.removeprefix(prefix): value.detach() for name, value in content.items()}


COUNTER = "num_batches_tracked"
"""Buffer of batch norm that is read only if momentum is None, which is not used here."""


def differences_of(
    expected: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    *,
    optional: Sequence[str] = (),
    names: Mapping[str, str] | None = None,
) -> list[str]:
    """Compares tensors by name, shape and whether they are floating-point; batch counters are left out.

    Args:
        expected: tensors of a network.
        given: tensors of a file, by the network's names.
        optional: endings of expected names that may be missing.
        names: names in the file by the network's names.

    Returns:
        One short text per difference; empty if everything fits.
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
        if name not in theirs:
            continue
        called = f"{name} ({names[name]})" if names and name in names else name
        if theirs[name].shape != value.shape:
            found.append(f"{called} is {shape_of(theirs[name])} instead of {shape_of(value)}")
        elif theirs[name].is_floating_point() != value.is_floating_point():
            found.append(f"{called} is {dtype_of(theirs[name])} instead of {dtype_of(value)}")
    return found


def load_into(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    source: str | Path,
    ignored: Sequence[str] = (),
    optional: Sequence[str] = (),
) -> None:
    """Copies tensors into a module by name; every name and shape must fit, and every number be finite.

    Args:
        module: receives the tensors.
        state: tensors by name.
        source: origin of the tensors, for messages.
        ignored: beginnings of names in ``state`` that are not loaded.
        optional: endings of names in ``module`` that may be missing and keep their initial values.

    Raises:
        UserError: naming the first tensors that are missing, surplus, or of another shape or type, or the first one
            with a non-finite number; the module is unchanged.
    """
    given = {name: value for name, value in state.items() if not name.startswith(tuple(ignored))}
    own = module.state_dict()
    refuse(differences_of(own, given, optional=optional), f"weights from '{source}'")
    # Counters are not used, so those that do not fit are left out.
    fitting = {name: value for name, value in given.items() if name in own and own[name].shape == value.shape}
    for name, value in fitting.items():
        if not value.to(own[name].dtype).isfinite().all():
            raise UserError(f"weights from '{source}' contain non-finite numbers in {name}")
    module.load_state_dict(fitting, strict=False)


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


def dtype_of(value: Tensor) -> str:
    """Formats a dtype, such as ``float32``."""
    return str(value.dtype).removeprefix("torch.")
