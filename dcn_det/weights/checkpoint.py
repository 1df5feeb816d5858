"""Checkpoints: tensors and plain containers, written whole or not at all, readable with ``weights_only=True``."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from dcn_det.errors import UserError
from dcn_det.files import replacing
from dcn_det.structures import Category

FORMAT = "dcn_det"
VERSION = 1
BACKBONE = "backbone"
"""The ``part`` that a file holds which is no whole detector."""
SAFETENSORS = ".safetensors"
"""Suffix of files that hold the tensors of ``model`` in that format, and all else as JSON in its header."""


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Writes a checkpoint whole or not at all, see :func:`dcn_det.files.replacing`.

    A ``.safetensors`` file holds no tensors but those of ``model``.
    """
    whole = {"format": FORMAT, "format_version": VERSION, **state}
    with replacing(path) as file:
        if path.suffix == SAFETENSORS:
            rest = {key: value for key, value in whole.items() if key != "model"}
            tensors = {name: value.contiguous() for name, value in whole["model"].items()}
            file.write(safetensors.torch.save(tensors, {"format": "pt", FORMAT: json.dumps(rest)}))
        else:
            torch.save(whole, file)


def load(path: Path) -> dict[str, Any]:
    """Reads a checkpoint of ours onto the CPU.

    Raises:
        UserError: there is no such file, it is truncated or damaged, or it is not a checkpoint of this project.
    """
    if not path.is_file():
        raise UserError(f"checkpoint '{path}' does not exist")
    try:
        state = _read(path)
    except PermissionError:
        raise
    except Exception as error:  # torch raises many kinds for a damaged archive
        reason = str(error).strip().split("\n")[0].split(". ")[0][:200] or type(error).__name__
        raise UserError(f"checkpoint '{path}' cannot be read; it is truncated or damaged ({reason})") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(f"'{path}' is not a dcn_det checkpoint; tools/train.py and tools/convert_weights.py write them")
    if state.get("part") == BACKBONE:
        raise UserError(f"'{path}' holds a backbone alone, to train from; give it as model.backbone.weights")
    if state.get("format_version", 0) > VERSION:
        raise UserError(f"checkpoint '{path}' was written by a newer dcn_det (format {state['format_version']})")
    return state


def _read(path: Path) -> Any:
    if path.suffix != SAFETENSORS:
        # torch does not look at the checksums it writes: without this, damaged weights would load in silence.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"wrong checksum of '{damaged}'")
        return torch.load(path, map_location="cpu", weights_only=True)
    tensors, rest = read_safetensors(path)
    return None if rest is None else {**rest, "model": tensors}


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Tensors by name, and what :func:`save` put beside them; ``None`` where another program wrote the file.

    Raises:
        safetensors.SafetensorError, ValueError: the file is damaged.
    """
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    return tensors, json.loads(metadata[FORMAT]) if FORMAT in metadata else None


def categories_to_plain(categories: tuple[Category, ...]) -> list[dict[str, Any]]:
    return [{"id": category.id, "name": category.name} for category in categories]


def categories_from_plain(plain: list[dict[str, Any]]) -> tuple[Category, ...]:
    return tuple(Category(item["id"], item["name"]) for item in plain)
