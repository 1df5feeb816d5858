"""Classes of a data set, in a module of their own so that evaluation does not import torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Category:
    """One class of a data set: its id in the annotation file and its name."""

    id: int
    name: str
