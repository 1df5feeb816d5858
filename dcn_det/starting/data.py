"""The section ``data`` for a folder of annotated images."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from dcn_det.config import FORMATS
from dcn_det.config.data import DataConfig
from dcn_det.data.findings import Findings, first_few
from dcn_det.data.formats import DataFormat, Split, open_split
from dcn_det.data.layouts import find_layouts
from dcn_det.data.layouts.tree import Layout, Role
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
        pictures: a folder of test images.
        lines: what was found and chosen, one line each.
        problems: splits in which ``dcn-det check-dataset`` reports errors.
    """

    settings: dict[str, Any]
    records: Records
    trained: np.ndarray
    pictures: Path
    lines: tuple[str, ...]
    problems: tuple[str, ...]

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
    settings: dict[str, Any] = {"kind": layout.kind, "root": os.path.normpath(root.absolute()), **layout.extra}
    if layout.kind == "voc" and not layout.classes:
        raise UserError(f"{root}: {layout.what}, but no object with a name")
    if layout.classes:
        settings["classes"] = list(layout.classes)
    train = layout.splits.get("train", layout.whole)
    tested = next((role for role in ("val", "test") if role in layout.splits), None)
    settings |= {"train": train, "test": layout.splits[tested] if tested else None}
    opened, records, findings = _read(settings, "train")
    last, last_records, last_findings = _read(settings, "test") if tested else (opened, records, findings)
    names = [category.name for category in records.categories]
    # COCO files that lack one of the listed classes are refused; without a list, classes are matched by name.
    settings["classes"] = names if set(names) <= {each.name for each in last_records.categories} else None
    lines = [f"found     {layout.what}", f"          {_contents(records)}"]
    lines += [f"          {note}" for note in (*layout.notes, *records.notes)]
    lines += [f"          also found, not used: {each.what} (--format {each.kind})" for each in others]
    problems = {"train": findings.errors} | ({"test": last_findings.errors} if tested else {})
    lines += [f"problems  {split}: {first_few(each, 3)}" for split, each in problems.items() if each]
    usable = _has_objects(records)
    if tested:
        trained, text = usable, _as_found(layout, tested, len(records.names), len(last_records.names))
    else:
        division, trained, text = _divide(train, records, usable)
        settings |= division
    return OwnData(
        settings={key: settings[key] for key in sorted(settings, key=lambda key: key == "classes")},
        records=records,
        trained=trained,
        pictures=(last.folder / next(iter(last_records.names), "x")).parent,
        lines=(*lines, *text),
        problems=tuple(split for split, each in problems.items() if each),
    )


def _read(settings: Mapping[str, Any], split: Split) -> tuple[DataFormat, Records, Findings]:
    opened = open_split(section_of(settings), split)
    findings = Findings(opened.source)
    return opened, opened.read(findings, labelled=split == "train"), findings


def _contents(records: Records) -> str:
    counts = np.bincount(records.labels, minlength=len(records.categories)).tolist()
    classes = sorted(zip(counts, (category.name for category in records.categories)), reverse=True)
    named = first_few([f"{name} {count}" for count, name in classes], 8)
    kinds = "1 class" if len(classes) == 1 else f"{len(classes)} classes"
    return f"{len(records.names)} images, {len(records.labels)} objects, {kinds}: {named}"


def _has_objects(records: Records) -> np.ndarray:
    counts = np.bincount(records.owners, weights=~records.crowd, minlength=len(records.names))
    return np.asarray(counts > 0)


def _as_found(layout: Layout, tested: Role, train: int, test: int) -> list[str]:
    splits = layout.splits
    lines = [f"splits    as found: train {_named(splits['train'])} ({train}), test {_named(splits[tested])} ({test})"]
    if tested == "val" and "test" in splits:
        lines.append(f"          for a final test, not used so far: {_named(splits['test'])}")
    return lines


def _named(split: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value if isinstance(value, str) else ' '.join(value)}" for key, value in split.items())


def _divide(
    split: Mapping[str, Any], records: Records, usable: np.ndarray
) -> tuple[dict[str, Any], np.ndarray, list[str]]:
    """Returns the settings that divide one split in two, the images to train on, and what was chosen."""
    if usable.sum() < 2:
        return {}, usable, ["splits    train only: too few images to test on some of them"]
    seed, trained = _seed(records, usable)
    settings = {"train": {**split, "part": [0, SHARE]}, "test": {**split, "part": [SHARE, 1]}}
    counts = f"{int(trained.sum())} for training, {int((~trained).sum())} for testing"
    text = f"splits    none found; by image names: {counts} (data.train.part, data.test.part; data.part_seed {seed})"
    return {**settings, "part_seed": seed}, usable & trained, [text]


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
