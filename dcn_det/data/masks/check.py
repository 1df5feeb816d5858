"""Checks of every image and mask of a split, for ``dcn-det check-dataset``."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dcn_det.config.segmentation_data import IGNORED
from dcn_det.data.check import bar, look_at
from dcn_det.data.findings import Findings
from dcn_det.data.masks.base import MaskFormat, Pair
from dcn_det.data.masks.reading import MaskProblem, Values, check_size, read_mask
from dcn_det.exif import Exif, applies
from dcn_det.progress import Count


@dataclass
class MaskReport:
    """Result of a check.

    Attributes:
        findings: errors and notes.
        classes: number of pixels and of images by class name, including classes without pixels.
        ignored: number of pixels without a class.
    """

    findings: Findings
    classes: dict[str, tuple[int, int]] = field(default_factory=dict)
    ignored: int = 0

    @property
    def good(self) -> bool:
        """Whether training and evaluation can use all images."""
        return not self.findings.errors

    def text(self) -> str:
        """Returns the report as text."""
        findings = self.findings
        lines = [f"{findings.source}: {findings.images} images, {len(self.classes)} classes", *findings.lines()]
        labelled = sum(pixels for pixels, _ in self.classes.values())
        lines.append(
            f"  pixels by class, % of the {labelled} labelled ones; images with the class "
            f"({100 * self.ignored / max(labelled + self.ignored, 1):.1f}% of all pixels are ignored)"
        )
        width = max((len(name) for name in self.classes), default=0)
        most = max((pixels for pixels, _ in self.classes.values()), default=0)
        for name, (pixels, images) in sorted(self.classes.items(), key=lambda item: -item[1][0]):
            share = 100 * pixels / max(labelled, 1)
            lines.append(f"    {name:<{width}} {share:>6.2f}% {images:>8} {bar(pixels, most)}".rstrip())
        return "\n".join(lines)


@dataclass(frozen=True)
class PairLook:
    """What was found in an image and its mask.

    Attributes:
        errors, notes: kinds of problems with an example each.
        counts: int64 (256,), pixels by label; None if the mask is missing or cannot be used.
    """

    errors: tuple[tuple[str, str], ...] = ()
    notes: tuple[tuple[str, str], ...] = ()
    counts: NDArray[np.int64] | None = None


def look_at_pair(pair: Pair, root: str, values: Values, max_pixels: int, exif: Exif = "auto") -> PairLook:
    """Decodes an image and its mask completely."""
    look = look_at(f"{root}/{pair.image}", max_pixels)
    errors, notes = [], []
    if look.problem is not None:
        errors.append((look.problem, pair.image))
    counts, stated = None, None
    if pair.mask is not None:
        path = f"{root}/{pair.mask}"
        try:
            labels = values.labels(read_mask(path, max_pixels), path)
            stated = (labels.shape[0], labels.shape[1])
            if look.problem is None:
                check_size(labels, look.size(exif, stated), path)
            counts = np.bincount(labels.ravel(), minlength=256)
        except MaskProblem as problem:
            errors.append((problem.kind, problem.example.removeprefix(f"{root}/")))
    if look.orientation != 1 and not applies(exif, (look.height, look.width), stated):
        notes.append(("image rotated by viewers (EXIF orientation), but not in training", pair.image))
    return PairLook(tuple(errors), tuple(notes), counts)


def check_masks(split: MaskFormat, workers: int = 0, progress: Count | None = None) -> MaskReport:
    """Checks images and masks of a split.

    Errors are problems that make training, testing or evaluation fail. Notes are all others.

    Args:
        split: the split.
        workers: processes that decode images; 0 decodes in this process.
        progress: called with the number of images read and their total number.

    Raises:
        UserError: the images cannot be listed at all.
    """
    report = MaskReport(Findings(split.source, fixable=False))
    pairs = split.read(report.findings)
    pixels, images = np.zeros(256, dtype=np.int64), np.zeros(256, dtype=np.int64)
    reading: dict[str, Any] = {"max_pixels": split.data.max_pixels, "exif": split.data.exif}
    look = partial(look_at_pair, root=str(split.root), values=split.values, **reading)
    with ExitStack() as stack:
        looks: Iterable[PairLook] = map(look, pairs)
        if workers > 0:
            looks = stack.enter_context(ProcessPoolExecutor(workers)).map(look, pairs, chunksize=8)
        for number, each in enumerate(looks, start=1):
            for kind, example in each.errors:
                report.findings.error(kind, example)
            for kind, example in each.notes:
                report.findings.note(kind, example)
            if each.counts is not None:
                pixels += each.counts
                images += each.counts > 0
            if progress is not None:
                progress(number, len(pairs))
    if not pairs:
        report.findings.error("no usable image", str(split.source))
    report.ignored = int(pixels[IGNORED])
    for label, category in enumerate(split.categories):
        report.classes[category.name] = (int(pixels[label]), int(images[label]))
        if not pixels[label] and pixels.any():
            report.findings.note("class without pixels", category.name)
    return report
