"""The section ``data`` for a folder of annotated images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from dcn_det.config import FORMATS
from dcn_det.config.data import DataConfig
from dcn_det.data.findings import Findings, first_few
from dcn_det.data.formats import open_split
from dcn_det.data.layouts import find_layouts
from dcn_det.data.layouts.tree import Layout
from dcn_det.data.records import Records
from dcn_det.data.subset import draw
from dcn_det.errors import UserError

SHARE = 0.8
"""Part of the images for training if the data have no splits."""
_SEEDS = 20
"""Divisions to choose from, so that rare classes are in both parts."""


@dataclass(frozen=True)
class OwnData:
    """Annotated images of a folder.

    Attributes:
        settings: the section ``data``, as plain values.
        records: images and objects of the training split.
        trained: bool (N,), images of ``records`` that the settings train on; those without objects are not.
        lines: what was found and chosen, one line each.
        problems: whether ``dcn-det check-dataset`` reports errors.
    """

    settings: dict[str, Any]
    records: Records
    trained: np.ndarray
    lines: tuple[str, ...]
    problems: bool

    @property
    def classes(self) -> list[str]:
        """Names of the classes, by label."""
        return [category.name for category in self.records.categories]


def section_of(settings: Mapping[str, Any]) -> DataConfig:
    """Returns plain settings of data as their section.

    Raises:
        UserError: a value is wrong, such as a file name that is not Unicode.
    """
    try:
        return FORMATS.sections[str(settings["kind"])].model_validate(dict(settings))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, ("data", *first["loc"])))
        raise UserError(f"{settings['root']}: {place}: {first['msg']}") from None


def find_data(root: Path, kind: str = "auto") -> OwnData:
    """Finds annotated images in a folder and divides them into a training and a test split.

    Args:
        root: the folder.
        kind: a format, or ``auto`` for the one with the most images.

    Raises:
        UserError: nothing is annotated, or the annotations cannot be read.
    """
    layout, *others = find_layouts(root, kind)
    settings: dict[str, Any] = {"kind": layout.kind, "root": str(root.absolute()), **layout.extra}
    if layout.kind == "voc" and not layout.classes:
        raise UserError(f"{root}: {layout.what}, but no object with a name")
    if layout.classes:
        settings["classes"] = list(layout.classes)
    train = layout.splits.get("train", layout.whole)
    settings |= {"train": train, "test": None}
    opened = open_split(section_of(settings), "train")
    findings = Findings(opened.source)
    records = opened.read(findings)
    settings["classes"] = [category.name for category in records.categories]
    lines = [f"found     {layout.what}", f"          {_contents(records)}"]
    lines += [f"          {note}" for note in (*layout.notes, *records.notes)]
    lines += [f"          also found, not used: {each.what} (--format {each.kind})" for each in others]
    usable = _has_objects(records)
    if findings.errors or not usable.any():
        count = sum(map(len, findings.errors.values()))
        lines.append(f"problems  {count or 'no'} usable annotations: {first_few(findings.errors, 3)}")
    division, trained, text = _divide(layout, records, usable)
    settings |= division
    return OwnData(_ordered(settings), records, trained, (*lines, *text), bool(findings.errors))


def _ordered(settings: dict[str, Any]) -> dict[str, Any]:
    """Puts the long list of classes last."""
    return {**{key: value for key, value in settings.items() if key != "classes"}, "classes": settings["classes"]}


def _contents(records: Records) -> str:
    counts = np.bincount(records.labels, minlength=len(records.categories)).tolist()
    classes = sorted(zip(counts, (category.name for category in records.categories)), reverse=True)
    named = first_few([f"{name} {count}" for count, name in classes], 8)
    return f"{len(records.names)} images, {len(records.labels)} objects, {len(classes)} classes: {named}"


def _has_objects(records: Records) -> np.ndarray:
    counts = np.bincount(records.owners, weights=~records.crowd, minlength=len(records.names))
    return np.asarray(counts > 0)


def _divide(layout: Layout, records: Records, usable: np.ndarray) -> tuple[dict[str, Any], np.ndarray, list[str]]:
    """Returns the settings of both splits, the images to train on, and what was chosen."""
    train = layout.splits.get("train", layout.whole)
    tested = next((role for role in ("val", "test") if role in layout.splits), None)
    if tested is not None:
        lines = [f"splits    as found: train {_named(train)}, test {_named(layout.splits[tested])}"]
        if tested == "val" and "test" in layout.splits:
            lines.append(f"          not used until you test on it: {_named(layout.splits['test'])}")
        return {"train": train, "test": layout.splits[tested]}, usable, lines
    if usable.sum() < 2:
        return {"train": train, "test": None}, usable, ["splits    none: too few images to test on some of them"]
    seed, trained = _seed(records, usable)
    settings = {
        "train": {**train, "part": [0, SHARE]},
        "test": {**train, "part": [SHARE, 1]},
        **({"part_seed": seed} if seed else {}),
    }
    text = (
        f"splits    none found; by image names: {int(trained.sum())} for training, {int((~trained).sum())} for testing"
    )
    return settings, usable & trained, [f"{text} (data.train.part, data.test.part; data.part_seed {seed})"]


def _named(split: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in split.items())


def _seed(records: Records, usable: np.ndarray) -> tuple[int, np.ndarray]:
    """Returns the first seed with which both parts have all classes, or lack the fewest, and the training images."""
    ranked = []
    for seed in range(_SEEDS):
        trained = draw(records.names, seed, "part") < SHARE
        missing = [_missing(records, usable & part) for part in (trained, ~trained)]
        off = abs(float(trained.mean()) - SHARE) > 0.05
        ranked.append((missing[0], missing[1], off, seed, trained))
        if not (any(missing) or off):
            break
    best = min(ranked, key=lambda each: each[:4])
    return best[3], best[4]


def _missing(records: Records, images: np.ndarray) -> int:
    """Returns the number of classes with no object in some images."""
    labels = records.labels[images[records.owners]]
    return len(np.unique(records.labels)) - len(np.unique(labels))
