"""Metrics of an evaluation, as numbers, text and JSON."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Metrics:
    """Metrics by name, from 0 to 1; nan where there are no objects.

    Attributes:
        kind: ``bbox`` or ``segm`` (COCO), or ``voc``.
        backend: name and version of the code that computed the metrics.
        values: metrics by name, in the order to show.
        per_class: the main metric by category name.
        images, objects, detections: numbers of images, objects and detections; crowds and difficult objects are not
            counted.
        notes: messages that affect how to read the metrics, one line each.
    """

    kind: str
    backend: str
    values: dict[str, float]
    per_class: dict[str, float]
    images: int
    objects: int
    detections: int
    notes: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> float:
        return self.values[name]

    @property
    def compared(self) -> str:
        """What the results were compared with."""
        return f"{self.images} images, {self.objects} objects"

    @property
    def totals(self) -> dict[str, int]:
        """Numbers that differ between results, by name."""
        return {"detections": self.detections}

    @property
    def counts(self) -> str:
        """What was compared."""
        return ", ".join([self.compared, *(f"{count} {name}" for name, count in self.totals.items())])

    def to_plain(self) -> dict[str, Any]:
        """Returns the metrics as a dict for JSON; undefined metrics are None."""
        return {
            "kind": self.kind,
            "backend": self.backend,
            "images": self.images,
            "objects": self.objects,
            "detections": self.detections,
            "metrics": {name: _defined(value) for name, value in self.values.items()},
            "per_class": {name: _defined(value) for name, value in self.per_class.items()},
            "notes": list(self.notes),
        }

    def table(self, per_class: bool = False) -> str:
        """Returns the metrics as lines of text, with three decimals, as pycocotools prints them."""
        lines = [f"{self.kind}: {self.counts} ({self.backend})", *self.notes]
        lines += ["  ".join(f"{name:>5} {text(value)}" for name, value in row) for row in _rows(self.values)]
        if per_class:
            width = max(map(len, self.per_class), default=0)
            lines += [f"{name:<{width}}  {text(value)}" for name, value in self.per_class.items()]
        return "\n".join(lines)


def _rows(values: dict[str, float]) -> list[tuple[tuple[str, float], ...]]:
    items = list(values.items())
    return [tuple(items[start : start + 6]) for start in range(0, len(items), 6)]


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else value


def text(value: float) -> str:
    """Returns a metric with three decimals, or ``n/a`` if undefined."""
    return "  n/a" if math.isnan(value) else f"{value:.3f}"
