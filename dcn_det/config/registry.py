"""Kinds of backbones, detectors and data formats, which other modules can extend.

A kind has a name, a section with its settings, and a builder that turns them into an object. The package registers
its own kinds in :mod:`dcn_det.config.kinds`; modules that a config imports register more in the same way.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, get_args, get_origin

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import PydanticCustomError, PydanticKnownError, core_schema

if TYPE_CHECKING:
    from dcn_det.config.data import DataConfig
    from dcn_det.config.model import BackboneConfig, DetectorConfig, SegmenterConfig
    from dcn_det.config.section import Section
    from dcn_det.config.segmentation_data import MaskDataConfig

S = TypeVar("S", bound="Section")
Builder = Callable[..., Any]


class Registry(Generic[S]):
    """Kinds of one part of a config, by name.

    Args:
        title: name of a kind in messages.
        base: base class of the sections of all kinds, as ``package.module:Class``.
    """

    def __init__(self, title: str, base: str) -> None:
        self.title = title
        self._base = base
        self._kinds: dict[str, tuple[type[S], str | Builder]] = {}

    @property
    def base(self) -> type[S]:
        """Base class of the sections of all kinds."""
        section: type[S] = resolve(self._base)
        return section

    @property
    def sections(self) -> dict[str, type[S]]:
        """Sections of all kinds, by name, in the order of registration."""
        return {name: section for name, (section, _) in self._kinds.items()}

    def register(self, name: str, section: type[S], builder: str | Builder) -> None:
        """Adds a kind; registering the same one again has no effect.

        Args:
            name: value of ``kind`` in a config.
            section: its settings, a subclass of ``base`` with a field ``kind`` that allows ``name``.
            builder: function from settings to object, or its place as ``package.module:function``, which is imported
                at its first use.

        Raises:
            ValueError: the name belongs to another kind, or the section or the builder has the wrong form.
        """
        if not (isinstance(section, type) and issubclass(section, self.base)):
            raise ValueError(f"{self.title} '{name}': its section must be a subclass of {self.base.__name__}")
        form = section.model_fields["kind"].annotation
        if get_origin(form) is not Literal or name not in get_args(form):
            raise ValueError(
                f'{self.title} \'{name}\': {section.__name__} needs a field kind: Literal["{name}"] = "{name}"'
            )
        if isinstance(builder, str) and not all(builder.partition(":")):
            raise ValueError(f"{self.title} '{name}': builder '{builder}' is not 'package.module:function'")
        if self._kinds.setdefault(name, (section, builder)) != (section, builder):
            taken, by = self._kinds[name]
            raise ValueError(
                f"{self.title} '{name}' is already registered: section {taken.__module__}.{taken.__qualname__}, "
                f"builder {by}"
            )

    def unregister(self, name: str) -> None:
        """Removes a kind; raises a ``KeyError`` if there is none of this name."""
        del self._kinds[name]

    def builder(self, name: str) -> Builder:
        """Returns the builder of a kind, imported if it was given as a string.

        Raises:
            KeyError: there is no such kind.
            ImportError, AttributeError: the builder or its module does not exist.
        """
        builder = self._kinds[name][1]
        found: Builder = resolve(builder) if isinstance(builder, str) else builder
        return found


def resolve(place: str) -> Any:
    """Returns the object at ``package.module:name``.

    Raises:
        ImportError, AttributeError: the module or the name in it does not exist.
    """
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


class OneOf:
    """Marks a field whose value is a section of any kind in a registry: ``Annotated[Base, OneOf(registry)]``.

    The kinds are those registered at the time of validation.
    """

    def __init__(self, registry: Registry[Any]) -> None:
        self.registry = registry

    def _validate(self, value: Any) -> Section:
        sections = self.registry.sections
        kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
        section = sections.get(kind) if isinstance(kind, str) else None
        if section is not None and isinstance(value, section):
            return value
        if not isinstance(value, dict):
            raise PydanticKnownError("dict_type")
        if section is None:
            allowed = ", ".join(sections)
            raise PydanticCustomError("union_tag_invalid", "kind must be one of {allowed}", {"allowed": allowed})
        return section.model_validate(value)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(self._validate)

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        sections = dict.fromkeys(self.registry.sections.values())
        return handler(core_schema.union_schema([section.__pydantic_core_schema__ for section in sections]))


BACKBONES: Registry[BackboneConfig] = Registry("backbone", "dcn_det.config.model:BackboneConfig")
DETECTORS: Registry[DetectorConfig] = Registry("detector", "dcn_det.config.model:DetectorConfig")
SEGMENTERS: Registry[SegmenterConfig] = Registry("segmenter", "dcn_det.config.model:SegmenterConfig")
FORMATS: Registry[DataConfig] = Registry("data format", "dcn_det.config.data:DataConfig")
MASKS: Registry[MaskDataConfig] = Registry("mask format", "dcn_det.config.segmentation_data:MaskDataConfig")


def register_backbone(name: str, section: type[BackboneConfig], builder: str | Builder) -> None:
    """Adds a kind of ``model.backbone``; see :meth:`Registry.register`."""
    BACKBONES.register(name, section, builder)


def register_detector(name: str, section: type[DetectorConfig], builder: str | Builder) -> None:
    """Adds a kind of ``model`` that detects; see :meth:`Registry.register`."""
    DETECTORS.register(name, section, builder)


def register_segmenter(name: str, section: type[SegmenterConfig], builder: str | Builder) -> None:
    """Adds a kind of ``model`` that segments; see :meth:`Registry.register`."""
    SEGMENTERS.register(name, section, builder)


def register_format(name: str, section: type[DataConfig], builder: str | Builder) -> None:
    """Adds a kind of ``data``; see :meth:`Registry.register`."""
    FORMATS.register(name, section, builder)


def register_masks(name: str, section: type[MaskDataConfig], builder: str | Builder) -> None:
    """Adds a kind of ``data`` for semantic segmentation; see :meth:`Registry.register`."""
    MASKS.register(name, section, builder)
