"""Random but fixed parts of a split, chosen by the names of its images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dcn_det.data.records import Records
from dcn_det.errors import UserError


def draw(names: Sequence[str], seed: int, purpose: str) -> NDArray[np.float64]:
    """Returns a number in [0, 1) for each name: a hash of ``seed``, ``purpose`` and the name, and of nothing else."""
    key = f"{seed}:{purpose}:".encode()
    hashes = (hashlib.blake2b(key + name.encode(), digest_size=8).digest() for name in names)
    return np.array([int.from_bytes(each, "big") >> 11 for each in hashes], np.float64) / 2**53


def subset(records: Records, part: tuple[float, float], fraction: float, seed: int, setting: str) -> Records:
    """Selects images at random.

    Args:
        records: images and objects.
        part, fraction, seed, setting: see :func:`choose`.

    Raises:
        UserError: no image is selected.
    """
    kept, note = choose(records.names, part, fraction, seed, setting, records.source)
    return records if note is None else records.select(images=kept).noted(note)


def choose(
    names: Sequence[str], part: tuple[float, float], fraction: float, seed: int, setting: str, source: str | Path
) -> tuple[NDArray[np.bool_], str | None]:
    """Chooses images at random.

    Whether an image is selected depends on the seed and its name alone. Parts that do not overlap have no image in
    common, and a larger fraction contains a smaller one. ``part`` and ``fraction`` are drawn independently.

    Args:
        names: of all images.
        part: numbers from 0 to 1; images are selected whose number is in [low, high).
        fraction: expected fraction of these images to select.
        seed: non-negative.
        setting: setting that gives ``part``, for messages.
        source: of the images, for messages.

    Returns:
        Whether each image is selected, bool (N,), and a note about the others; None if all are.

    Raises:
        UserError: no image is selected.
    """
    if part == (0, 1) and fraction == 1:
        return np.ones(len(names), dtype=np.bool_), None
    place = draw(names, seed, "part")
    kept = (part[0] <= place) & (place < part[1]) & (draw(names, seed, "fraction") < fraction)
    limits = [f"{setting} [{part[0]:g}, {part[1]:g}]"] if part != (0, 1) else []
    where = " and ".join(limits + ([f"data.fraction {fraction:g}"] if fraction < 1 else []))
    if not kept.any():
        raise UserError(f"{where}: none of the {len(kept)} images of {source} is selected; choose more")
    return kept, f"images outside {where}, left out: {int((~kept).sum())}"
