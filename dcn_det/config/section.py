"""Base class of settings sections, and types of their values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from inspect import get_annotations
from typing import Annotated, Any, ClassVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from dcn_det.config.registry import OneOf


def at_most(limit: int) -> AfterValidator:
    """Returns an upper limit far above useful values, which messages mention only where it is exceeded."""

    def check(value: Any) -> Any:
        if value > limit:
            raise ValueError(f"{str(value)[:20]} is too large; allowed: at most {limit}")
        return value

    return AfterValidator(check)


_INTEGERS, _NUMBERS = at_most(10**9), at_most(10**30)

Positive = Annotated[int, Field(gt=0), _INTEGERS]
NonNegative = Annotated[int, Field(ge=0), _INTEGERS]
PositiveFloat = Annotated[float, Field(gt=0), _NUMBERS]
NonNegativeFloat = Annotated[float, Field(ge=0), _NUMBERS]
BatchSize = Annotated[Positive, at_most(4096)]
Pixels = Annotated[Positive, at_most(16384)]
Fraction = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Text = Annotated[str, Field(min_length=1)]
Triple = tuple[float, float, float]


class Section(BaseModel):
    """Base class of all settings sections: immutable, strictly typed, without unknown keys.

    Values are not converted, except for integers to floats and lists to tuples.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        validate_default=True,
        use_attribute_docstrings=True,
    )

    alternatives: ClassVar[tuple[tuple[str, ...], ...]] = ()
    """Groups of mutually exclusive keys; giving one replaces the inherited others."""

    lasting: ClassVar[tuple[str, ...]] = ()
    """Inherited keys to keep if a block of another kind becomes one of this ``kind``, in addition to those that both
    kinds inherit from a common section."""

    @classmethod
    def variants(cls, key: str) -> dict[str, type[Section]]:
        """Returns the classes of the block ``key`` by ``kind``; empty unless its keys depend on ``kind``."""
        field = cls.model_fields.get(key)
        if field is None:
            return {}
        for mark in field.metadata:
            if isinstance(mark, OneOf):
                return mark.registry.sections
        if field.discriminator != "kind":
            return {}
        return {get_args(c.model_fields["kind"].annotation)[0]: c for c in get_args(field.annotation)}

    @classmethod
    def default_kind(cls, key: str) -> str | None:
        """Returns the default ``kind`` of the block ``key``, which has variants; ``None`` if it must be given."""
        kind: str | None = getattr(cls.model_fields[key].default, "kind", None)
        return kind

    @classmethod
    def inherits(cls, key: str, other: type[Section]) -> bool:
        """Returns whether this section and ``other`` inherit a key from the same section."""
        owners = [next((c for c in s.__mro__ if key in get_annotations(c)), None) for s in (cls, other)]
        return owners[0] is not None and owners[0] is owners[1]

    @model_validator(mode="before")
    @classmethod
    def _read_plain(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        read = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
        problems: dict[tuple[str | int, ...], str] = {
            (key,): _UNUSABLE for key, value in read.items() if unusable(value)
        }
        if problems:
            raise wrong(problems)
        for key, value in read.items():
            if isinstance(value, dict) and "kind" not in value and cls.variants(key) and cls.default_kind(key):
                read[key] = {"kind": cls.default_kind(key), **value}
        return read


_UNUSABLE = "contains a character that no file name can have (NUL or half of a surrogate pair); remove it"


def unusable(value: object) -> bool:
    """Whether text, or a list of texts, contains characters that neither files nor terminals accept."""
    texts = value if isinstance(value, tuple) else (value,)
    return any(isinstance(text, str) and re.search("[\0\ud800-\udfff]", text) for text in texts)


def wrong(messages: Mapping[tuple[str | int, ...], str]) -> ValidationError:
    """Returns the error to raise in the validator of a section for values that contradict others.

    Args:
        messages: messages with the allowed values, by the path of a value below the section.
    """
    details = [
        InitErrorDetails(type=PydanticCustomError("value_error", "{error}", {"error": message}), loc=key, input=None)
        for key, message in messages.items()
    ]
    return ValidationError.from_exception_data("settings", details)
