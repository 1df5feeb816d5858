"""Classes of a data set, in a module of their own so that evaluation does not import torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Category:
    """One class of a data set.

    Attributes:
        id: in the annotation file.
        name: unique.
        annotated: whether the annotation file has the class; if not, no result can refer to it.
    """

    id: int
    name: str
    annotated: bool = True
