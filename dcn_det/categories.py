"""The classes of a data set; apart from the other records, so that evaluation does not have to load torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Category:
    """One class of a data set: its id in the annotation file and its name."""

    id: int
    name: str
