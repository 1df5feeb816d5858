"""Passing settings to constructors: a key of a section is an argument of the same name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from dcn_det.config.section import Section


class Options:
    """The keys of a settings section, passed to constructors by name.

    Args:
        section: the settings.
        apart: keys that are used in another way.
    """

    def __init__(self, section: Section, *apart: str) -> None:
        self._values = {key: getattr(section, key) for key in type(section).model_fields}
        self._left = self._values.keys() - set(apart)

    def __call__(self, constructor: Callable[..., Any], **instead: Any) -> dict[str, Any]:
        """Returns the keys that are arguments of a constructor, with some values replaced."""
        names = argument_names(constructor)
        picked = {key: value for key, value in self._values.items() if key in names}
        self._left -= picked.keys()
        return {**picked, **instead}

    def done(self) -> None:
        """Asserts that every key reached a constructor."""
        assert not self._left, f"settings without effect: {sorted(self._left)}"


def argument_names(constructor: Callable[..., Any]) -> set[str]:
    """Returns the names of a constructor's arguments, including those of base classes that it passes on."""
    names: set[str] = set()
    for owner in inspect.getmro(constructor) if isinstance(constructor, type) else (constructor,):
        if isinstance(constructor, type) and "__init__" not in vars(owner):
            continue
        parameters = inspect.signature(owner).parameters.values()
        names |= {each.name for each in parameters if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)}
        if not any(each.kind is each.VAR_KEYWORD for each in parameters):
            break
    return names
