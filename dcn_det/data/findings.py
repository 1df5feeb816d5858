"""Problems of annotations by kind: training, testing and evaluation refuse them, ``check-dataset`` lists them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dcn_det.errors import UserError

EXAMPLES = 5
"""Maximum number of examples shown for each problem."""


@dataclass
class Findings:
    """Problems that readers of annotations found.

    Readers leave out images and objects with errors. Training, testing and evaluation call :meth:`refuse` afterwards,
    so that they run on complete data only.

    Attributes:
        source: annotation files or folder, for messages.
        errors: all examples of each kind of error.
        notes: all examples of each kind of note; these do not prevent training or evaluation.
        images, objects: numbers of annotated images and objects, with those that have errors; set by readers that know.
        fixable: whether ``check-dataset --fix`` can leave out what has errors.
    """

    source: str | Path
    errors: dict[str, list[str]] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)
    images: int = 0
    objects: int = 0
    fixable: bool = True

    def error(self, kind: str, example: str) -> None:
        self.errors.setdefault(kind, []).append(example)

    def note(self, kind: str, example: str) -> None:
        self.notes.setdefault(kind, []).append(example)

    def include(self, other: Findings, named: bool) -> None:
        """Adds the problems of a file; with ``named``, examples begin with its name."""
        prefix = f"{other.source}: " if named else ""
        for mine, theirs in ((self.errors, other.errors), (self.notes, other.notes)):
            for kind, examples in theirs.items():
                mine.setdefault(kind, []).extend(prefix + example for example in examples)
        self.images += other.images
        self.objects += other.objects

    def lines(self, notes: Iterable[str] = ()) -> list[str]:
        """Describes all problems and ``notes`` for a report, one line each."""
        lines = []
        for kind, problems in (("error", self.errors), ("note ", self.notes)):
            for problem, examples in sorted(problems.items()):
                more = ", ..." if len(examples) > EXAMPLES else ""
                lines.append(f"  {kind} {problem}: {len(examples)} ({', '.join(examples[:EXAMPLES])}{more})")
        lines += [f"  note  {note}" for note in notes]
        return lines or ["  no problems found"]

    def refuse(self) -> None:
        """Checks that there are no errors.

        Raises:
            UserError: there are; the message describes the first kind.
        """
        for kind, examples in self.errors.items():
            count = sum(map(len, self.errors.values()))
            fix = ", --fix repairs or drops them" if self.fixable else ""
            advice = f"; dcn-det check-dataset lists all {count} errors{fix}" if count > 1 else ""
            raise UserError(f"{self.source}: {kind}: {first_few(examples, 3)}{advice}")

    def keep(self, good: NDArray[np.bool_], kind: str, examples: Iterable[str]) -> NDArray[np.bool_]:
        """Reports the rows that are not ``good`` as errors; returns ``good``.

        Args:
            good: bool (N,).
            kind: kind of error.
            examples: one text per row that is not good, in order.
        """
        if not good.all():
            self.errors.setdefault(kind, []).extend(examples)
        return good


def first_few(items: Iterable[object], count: int = 5) -> str:
    """Joins the first ``count`` items and adds the number of the others."""
    texts = [str(item) for item in items]
    more = f" and {len(texts) - count} more" if len(texts) > count else ""
    return ", ".join(texts[:count]) + more
