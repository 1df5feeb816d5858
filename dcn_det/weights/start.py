"""Starts the training of a model from a checkpoint of the same architecture, also with other classes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dcn_det.config import RunConfig, to_plain
from dcn_det.errors import UserError
from dcn_det.structures import Category
from dcn_det.weights.files import COUNTER, differences_of, load_into
from dcn_det.weights.settings import as_overrides, shaping_differences

_OFFSETS = re.compile(r"offset(\.\d+)*\.(weight|bias)$")
"""Names of the parameters that predict offsets: plain networks have none, and new ones start as plain networks."""
_FEW = 10
"""Layers of a part that are listed one by one."""
_NAMED = 5
"""Classes that are named per layer."""


def class_layers(model: nn.Module) -> dict[str, int]:
    """Returns the layers whose outputs are grouped by class, in the order of the labels.

    Modules name them in an optional attribute ``class_layers``: names of their layers, with the number of groups
    before those of the classes (1 where background comes first, otherwise 0). All groups of a layer have the same size.

    Args:
        model: the network.

    Returns:
        Number of leading groups by the layer's name in the model.
    """
    return {
        f"{prefix}.{name}".removeprefix("."): leading
        for prefix, module in model.named_modules()
        for name, leading in getattr(module, "class_layers", {}).items()
    }


def start_from(
    model: nn.Module, categories: Sequence[Category], config: RunConfig, state: Mapping[str, Any], path: Path
) -> list[str]:
    """Copies the weights of a checkpoint into a model whose classes may differ from those of the checkpoint.

    In the layers of :func:`class_layers`, the outputs of the classes that the checkpoint has, by name, and of
    background are copied; those of other classes keep their initial values. So do layers that predict offsets, if the
    checkpoint has none. All other tensors must fit.

    Args:
        model: built from ``config``, on the CPU.
        categories: classes of the model by label.
        config: the settings, for messages.
        state, path: content of the checkpoint, and its file.

    Returns:
        A table of what happened, one line per layer.

    Raises:
        UserError: other layers differ, or a number is not finite; the model is unchanged.
    """
    given, own, layers = state["model"], model.state_dict(), class_layers(model)
    names, known = [category.name for category in categories], [each["name"] for each in state["categories"]]
    new = [name for name in own if name not in given and _OFFSETS.search(name)]
    expected = {
        name: _regrouped(value, layers[layer], len(names), len(known)) if (layer := _layer(name)) in layers else value
        for name, value in own.items()
    }
    problems = differences_of(expected, given, optional=new)
    if problems:
        more = f" (and {len(problems) - 1} more differences)" if len(problems) > 1 else ""
        raise UserError(f"model.weights: '{path}' has another network: {problems[0]}{more}{_fix(config, state)}")
    pairs = [(i, known.index(name)) for i, name in enumerate(names) if name in known]
    merged = {
        name: _with_rows(own[name], value, layers[layer], len(names), len(known), pairs)
        if (layer := _layer(name)) in layers
        else value
        for name, value in given.items()
        if name in own and not name.endswith(COUNTER)
    }
    load_into(model, merged, source=path, optional=[*new, COUNTER])
    return _table(own, new, layers, names, known)


def _layer(name: str) -> str:
    """Returns the name of a parameter's layer."""
    return name.rpartition(".")[0]


def _regrouped(value: Tensor, leading: int, ours: int, theirs: int) -> Tensor:
    """Returns an empty tensor of the shape that a class layer has with ``theirs`` classes instead of ``ours``."""
    size, rest = divmod(len(value), leading + ours)
    assert rest == 0, "the outputs of a class layer are groups of the same size"
    return torch.empty(size * (leading + theirs), *value.shape[1:], dtype=value.dtype, device="meta")


def _with_rows(
    own: Tensor, given: Tensor, leading: int, ours: int, theirs: int, pairs: Sequence[tuple[int, int]]
) -> Tensor:
    """Returns a parameter of a class layer, with groups of outputs replaced: the leading ones, and those in ``pairs``.

    Args:
        own, given: (groups * size, ...).
        leading: groups before those of the classes.
        ours, theirs: numbers of classes.
        pairs: labels of the same class in ``own`` and in ``given``.
    """
    result, source = own.clone().unflatten(0, (leading + ours, -1)), given.unflatten(0, (leading + theirs, -1))
    result[:leading] = source[:leading].to(own.dtype)
    for mine, other in pairs:
        result[leading + mine] = source[leading + other].to(own.dtype)
    return result.flatten(0, 1)


def _fix(config: RunConfig, state: Mapping[str, Any]) -> str:
    wanted = shaping_differences(to_plain(config), state["config"])
    return f"; set {as_overrides(wanted)}, or give other weights" if wanted else "; give weights of this network"


def _table(
    own: Mapping[str, Tensor], new: Sequence[str], layers: Mapping[str, int], names: list[str], known: list[str]
) -> list[str]:
    parts: dict[str, dict[str, str]] = {}
    for name in own:
        layer = _layer(name)
        if name.endswith(COUNTER):
            continue
        done = "new: not in the checkpoint" if name in new else "copied"
        if done == "copied" and layer in layers:
            done = _of_classes(layers[layer], names, known)
        parts.setdefault(layer.partition(".")[0], {})[layer] = done
    rows: list[tuple[str, str]] = []
    for part, results in parts.items():
        for result in dict.fromkeys(results.values()):
            alike = [layer for layer in results if results[layer] == result]
            if len(alike) > _FEW:
                rows.append((f"{part} ({len(alike)} layers)", result))
            else:
                rows += [(layer, result) for layer in alike]
    width = max(len(layer) for layer, _ in rows)
    return [f"{layer:<{width}}  {result}" for layer, result in rows]


def _of_classes(leading: int, names: list[str], known: list[str]) -> str:
    kept, fresh = [name for name in names if name in known], [name for name in names if name not in known]
    if not fresh and names == known:
        return "copied"
    parts = ["background"] if leading else []
    parts += [f"{len(kept)} of {len(names)} classes ({_some(kept)})"] if kept else []
    said = f"copied for {' and '.join(parts)}" if parts else ""
    started = f"new for {len(fresh)} classes ({_some(fresh)})" if fresh else ""
    return "; ".join(filter(None, [said, started]))


def _some(names: list[str]) -> str:
    return ", ".join([*names[:_NAMED], *(["..."] if len(names) > _NAMED else [])])
