"""Checkpoints: tensors and plain containers, written atomically."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
)
from torch import Tensor

from dcn_det.config import upgrade_plain
from dcn_det.errors import UserError
from dcn_det.files import replacing
from dcn_det.structures import Category
from dcn_det.weights import storage

FORMAT = "dcn_det"
VERSION = 1
BACKBONE = "backbone"
"""``part`` of a file that holds a backbone instead of a detector."""

TESTING = ("config", "categories", "model")
"""Fields that testing needs."""
RESUMING = (
    *TESTING,
    *("optimizer", "scaler", "iteration", "images_per_step", "best", "history", "skipped", "random"),
)
"""Fields that continuing a run needs."""


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", arbitrary_types_allowed=True)


def _with_plain_keys(plain: JsonValue) -> JsonValue:
    """Refuses keys that do not fit into a message, at any depth."""
    if isinstance(plain, dict) and not all(map(storage.is_name, plain)):
        raise ValueError("a key is too long or contains control characters")
    for inner in plain.values() if isinstance(plain, dict) else plain if isinstance(plain, list) else ():
        _with_plain_keys(inner)
    return plain


_Plain = Annotated[dict[str, JsonValue], AfterValidator(_with_plain_keys)]


class _Category(_Strict):
    id: int
    name: str


class _Optimizer(_Strict):
    state: dict[int, dict[str, Any]]
    param_groups: list[dict[str, Any]]


class _Random(_Strict):
    python: list[Any]
    numpy: list[Any]
    torch: Tensor
    device: Tensor | None


class _Fields(_Strict):
    """Types of a checkpoint's fields; each may be missing."""

    format_version: NonNegativeInt = 0
    config: _Plain = {}
    categories: Annotated[list[_Category], Field(min_length=1)] = []
    model: dict[str, Any] = {}
    average: dict[str, Any] | None = None
    settings: _Plain = {}
    data_fingerprint: str = ""
    optimizer: _Optimizer = _Optimizer(state={}, param_groups=[])
    scaler: dict[str, Any] = {}
    iteration: NonNegativeInt = 0
    images_per_step: PositiveInt = 1
    best: float | None = None
    history: list[dict[str, float]] = []
    skipped: NonNegativeInt = 0
    random: list[_Random] = []


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Writes a checkpoint atomically, see :func:`dcn_det.files.replacing`.

    A ``.safetensors`` file holds no tensors but those of ``model``.
    """
    with replacing(path) as file:
        storage.write(file, {"format": FORMAT, "format_version": VERSION, **state}, path.suffix)


def load(path: Path, needed: Iterable[str] = ()) -> dict[str, Any]:
    """Reads a checkpoint onto the CPU.

    Args:
        path: written by :func:`save`.
        needed: fields without which the checkpoint is refused.

    Raises:
        UserError: there is no such file, it is truncated or damaged, it is not a checkpoint of dcn_det, or a field is
            missing or of a wrong type.
    """
    state = storage.read(path)
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(f"'{path}' is not a dcn_det checkpoint; dcn-det train and dcn-det convert-weights write them")
    check_fields(state, path)
    if state.get("part") == BACKBONE:
        raise UserError(f"'{path}' holds only a backbone, to train from; give it as model.backbone.weights")
    require(state, path, needed)
    if "config" in state:
        state["config"] = upgrade_plain(state["config"])
    return state


def check_fields(state: Mapping[Any, Any], path: Path) -> None:
    """Raises a UserError if a field of a checkpoint has a wrong type, or the checkpoint is from a newer version."""
    version = state.get("format_version")
    if isinstance(version, int) and version > VERSION:
        raise UserError(f"checkpoint '{path}' was written by a newer dcn_det (format {version})")
    try:
        _Fields.model_validate(dict(state))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = storage.readable(".".join(map(str, first["loc"])))
        raise UserError(f"checkpoint '{path}' is damaged: {where}: {first['msg'].lower()}") from error
    for group in ("model", "average"):
        problem = storage.check_tensors(state.get(group) or {})
        if problem is not None:
            raise UserError(f"checkpoint '{path}' is damaged: {group}: {problem}")


def require(state: Mapping[str, Any], path: Path, needed: Iterable[str]) -> None:
    """Raises a UserError if a checkpoint lacks one of the fields ``needed``."""
    missing = [key for key in needed if key not in state]
    if missing:
        raise UserError(f"checkpoint '{path}' has no {', '.join(missing)}")


def categories_to_plain(categories: tuple[Category, ...]) -> list[dict[str, Any]]:
    return [{"id": category.id, "name": category.name} for category in categories]


def categories_from_plain(plain: list[dict[str, Any]]) -> tuple[Category, ...]:
    return tuple(Category(item["id"], item["name"]) for item in plain)
