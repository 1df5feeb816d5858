"""Problems of annotations by kind, which training, testing and evaluation refuse and ``check-dataset`` lists."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dcn_det.errors import UserError

_NAMED = 5
"""Offenders named in a message."""


@dataclass
class Findings:
    """What readers found wrong.

    Readers leave out what has an error. Whoever needs sound annotations calls :meth:`refuse` afterwards.

    Attributes:
        source: annotation file or folder, for messages.
        errors: kind of problem -> examples of it, all of them. None of them may be left for training or evaluation.
        notes: as ``errors``; worth knowing only.
    """

    source: str | Path
    errors: dict[str, list[str]] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)

    def error(self, kind: str, example: str) -> None:
        self.errors.setdefault(kind, []).append(example)

    def note(self, kind: str, example: str) -> None:
        self.notes.setdefault(kind, []).append(example)

    def refuse(self) -> None:
        """Raises a UserError for the first kind of error, if there is any."""
        for kind, examples in self.errors.items():
            others = len(self.errors) - 1
            more = f"; dcn-det check-dataset lists {others} more kind(s) of errors" if others else ""
            raise UserError(f"{self.source}: {kind}: {first_few(examples)}{more}")

    def keep(self, good: NDArray[np.bool_], kind: str, examples: Iterable[str]) -> NDArray[np.bool_]:
        """Reports the rows that are not ``good`` as errors; returns ``good``.

        Args:
            good: (N,).
            kind: of error.
            examples: of the rows that are not good, in their order.
        """
        if not good.all():
            self.errors.setdefault(kind, []).extend(examples)
        return good


def first_few(items: Iterable[object]) -> str:
    """Joins the first few of ``items`` and adds the number of the others."""
    texts = [str(item) for item in items]
    more = f" and {len(texts) - _NAMED} more" if len(texts) > _NAMED else ""
    return ", ".join(texts[:_NAMED]) + more
