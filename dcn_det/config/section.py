"""What every block of settings is made of: its base class, and the types that values have."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Text = Annotated[str, Field(min_length=1)]
Triple = tuple[float, float, float]


class Section(BaseModel):
    """Base of every block of settings: immutable, closed, strictly typed.

    Nothing is converted except an integer where a float is wanted and a list where a tuple is.
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
    """Groups of keys of which one is given; when files inherit, giving one takes the place of the others."""

    lasting: ClassVar[tuple[str, ...]] = ()
    """Of a block with variants: keys that stay when files inherit and one names another ``kind``."""

    @classmethod
    def variants(cls, key: str) -> dict[str, type[Section]]:
        """The classes that the block ``key`` can be, by ``kind``; empty unless ``kind`` decides its keys."""
        field = cls.model_fields.get(key)
        if field is None or field.discriminator != "kind":
            return {}
        return {get_args(c.model_fields["kind"].annotation)[0]: c for c in get_args(field.annotation)}

    @classmethod
    def default_kind(cls, key: str) -> str:
        """What the block ``key``, which has variants, is when it names no ``kind``."""
        return str(cls.model_fields[key].default.kind)

    @model_validator(mode="before")
    @classmethod
    def _read_plain(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        read = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
        for key, value in read.items():
            if isinstance(value, dict) and "kind" not in value and cls.variants(key):
                read[key] = {"kind": cls.default_kind(key), **value}
        return read
