"""Pascal VOC: image sets, with one XML file per image.

An image set is a text file of image names such as ``VOC2007/ImageSets/Main/trainval.txt``; the folders ``Annotations``
and ``JPEGImages`` are next to ``ImageSets``. The format is that of the development kits of 2007 and 2012 (Everingham et
al., "The Pascal Visual Object Classes (VOC) Challenge", IJCV 2010). Image names with letters and image formats other
than JPEG are also supported, and folders of XML files without image sets.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dcn_det.data.findings import Findings, first_few
from dcn_det.data.formats.base import DataFormat
from dcn_det.data.formats.voc_files import Job, jobs_of_folder, jobs_of_sets
from dcn_det.data.records import ImageRecord, ObjectRecord, Records, image_id, named_together, pack
from dcn_det.data.rules import MAX_SIDE, name_problem, screen
from dcn_det.errors import UserError, did_you_mean, shown
from dcn_det.files import read_xml
from dcn_det.images import image_size

if TYPE_CHECKING:
    from dcn_det.config.data import VocDataConfig, VocSplitConfig

Corners = Literal["inclusive", "half_open"]

_NAMES = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep "
    "sofa train tvmonitor"
)
VOC_CLASSES = tuple(_NAMES.split())


class VocFormat(DataFormat):
    """Pascal VOC's format: image sets (``sets`` of a split), or a folder of XML files and images (``folder``)."""

    data: VocDataConfig
    paths: VocSplitConfig

    @property
    def source(self) -> str | Path:
        places = self.paths.sets or (self.paths.folder or ".",)
        return named_together([self.root / each for each in places])

    def read(self, findings: Findings, labelled: bool = True) -> Records:
        classes = self.data.classes
        reader = _Reader(self.root, classes or VOC_CLASSES, findings, labelled, classes is not None, self.data.corners)
        reader.upright = self.data.exif != "ignore"
        sets, without = self.paths.sets or (), self.paths.without
        if self.paths.folder is None:
            return reader.read(*jobs_of_sets(self.root, sets, without), self.source)
        return reader.read(*jobs_of_folder(self.root, self.paths.folder, sets, without, findings), self.source)


def read_voc(
    root: Path,
    sets: Sequence[str],
    classes: Sequence[str] | None = None,
    labelled: bool = True,
    corners: Corners = "inclusive",
) -> Records:
    """Reads the annotations of image sets.

    Image ids are the digits of the image name: ``2008_000002`` gives 2008000002. For other names, they are hashes of
    folder and name. Inclusive corners become half-open, with pixels counted from 0: (xmin - 1, ymin - 1, xmax, ymax).
    Difficult objects are marked as crowds. Repeated names are counted once.

    Args:
        root: folder that contains ``VOC2007`` and the like.
        sets: image set files relative to ``root``; their images are combined.
        classes: class names by label; objects of other classes are left out. None uses the 20 classes of Pascal VOC and
            treats other classes as errors.
        labelled: whether an image without annotation file is an error. If not, it has no objects, and its size is read
            from the image file.
        corners: see ``VocDataConfig``.

    Returns:
        The images in the order of the sets.

    Raises:
        UserError: a file is missing or malformed, or an image or object cannot be used.
    """
    findings = Findings(named_together([root / each for each in sets]))
    reader = _Reader(root, classes or VOC_CLASSES, findings, labelled, classes is not None, corners)
    records = reader.read(*jobs_of_sets(root, sets, ()), findings.source)
    findings.refuse()
    return records


class _Reader:
    """Reader of annotation files.

    Args:
        root: see :func:`read_voc`.
        classes: class names by label.
        findings: receives errors and notes.
        labelled: see :func:`read_voc`.
        select: whether objects of other classes are left out; if not, they are errors.
        corners: see :func:`read_voc`.
    """

    def __init__(
        self, root: Path, classes: Sequence[str], findings: Findings, labelled: bool, select: bool, corners: Corners
    ) -> None:
        self.root = root
        self.classes = {name: label for label, name in enumerate(classes)}
        self.findings = findings
        self.labelled = labelled
        self.select = select
        self.first = 1 if corners == "inclusive" else 0
        self.upright = False
        """Whether sizes that annotations do not state are those of the upright image."""
        self._others: Counter[str] = Counter()

    def read(self, jobs: Sequence[Job], notes: Sequence[str], source: str | Path) -> Records:
        with ThreadPoolExecutor(8) as pool:
            trees = list(pool.map(lambda job: _parse(job.annotation), jobs))
        self.findings.images = len(jobs)
        images = [each for job, tree in zip(jobs, trees) if (each := self._image(job, tree)) is not None]
        records = pack(_with_own_ids(images), list(self.classes), source).noted(*notes)
        if self._others:
            others = [f"{shown(name)} {count}" for name, count in self._others.most_common()]
            records = records.noted(f"objects of other classes, left out: {first_few(others)}")
            self._refuse_misspelt(records)
        return screen(records, self.findings, self.labelled)

    def _refuse_misspelt(self, records: Records) -> None:
        used = {records.categories[label].name for label in records.labels.tolist()}
        for name in self.classes.keys() - used:
            near = did_you_mean(name, self._others)
            if near:
                raise UserError(f"data.classes: no object of class '{name}' in {records.source}{near}")

    def _image(self, job: Job, tree: ElementTree.Element | str) -> ImageRecord | None:
        path, file = job.annotation, job.image
        problem = name_problem(file.name) if file.is_relative_to(self.root) else f"{file} is outside data.root"
        if problem:
            self.findings.error("image without a usable name", problem)
            return None
        relative = file.relative_to(self.root).as_posix()
        ident = image_id(job.name, relative)
        if isinstance(tree, str):
            if tree != _MISSING or self.labelled:
                self.findings.error(tree.split(":")[0], f"{path}{tree[len(tree.split(':')[0]) :]}")
                return None
            self.findings.note("image without annotation file", str(path))
            size = image_size(file, self.upright)
            if size is None:
                self.findings.error("image missing or unreadable", str(file))
                return None
            return ImageRecord(ident, relative, *size)
        size = self._size(tree, path, file)
        if size is None:
            return None
        self.findings.objects += len(tree.findall("object"))
        objects = [self._object(node, f"{path} object {i}") for i, node in enumerate(tree.iterfind("object"), start=1)]
        return ImageRecord(ident, relative, *size, tuple(each for each in objects if each is not None))

    def _size(self, tree: ElementTree.Element, path: Path, file: Path) -> tuple[int, int] | None:
        """Returns height and width as annotated, or those of the image file if the annotation has 0 or none."""
        texts = [tree.findtext(f"size/{key}") for key in ("height", "width")]
        sides = [_number(text or "0") for text in texts]
        if all(side is not None and 1 <= side <= MAX_SIDE for side in sides):
            return int(sides[0] or 0), int(sides[1] or 0)
        size = image_size(file, self.upright) if all(side == 0 for side in sides) else None
        if size is None:
            given = f"width {shown(texts[1])}, height {shown(texts[0])}"
            self.findings.error("image without a usable size", f"{path}: {given}")
        else:
            self.findings.note("annotation without size; that of the image is used", str(path))
        return size

    def _object(self, node: ElementTree.Element, where: str) -> ObjectRecord | None:
        name = (node.findtext("name") or "").strip()
        if name not in self.classes:
            if self.select and name:
                self._others[name] += 1
            else:
                self.findings.error("object of an unknown class", f"{where} is {shown(name)}")
            return None
        keys = ("xmin", "ymin", "xmax", "ymax")
        corners = [_number(node.findtext(f"bndbox/{key}")) for key in keys]
        if None in corners:
            key = keys[corners.index(None)]
            text = shown(node.findtext(f"bndbox/{key}"))
            self.findings.error("object without a usable box", f"{where}: bndbox/{key} is {text}, expected a number")
            return None
        x1, y1, x2, y2 = (float(corner) for corner in corners if corner is not None)
        difficult = (node.findtext("difficult") or "0").strip() == "1"
        return ObjectRecord(self.classes[name], (x1 - self.first, y1 - self.first, x2, y2), difficult)


def _with_own_ids(images: Sequence[ImageRecord]) -> list[ImageRecord]:
    """Replaces ids that several files share, such as those of ``a/1.jpg`` and ``b/1.jpg``."""
    files: dict[int, set[str]] = {}
    for image in images:
        files.setdefault(image.image_id, set()).add(image.file_name)
    return [
        replace(image, image_id=image_id("", image.file_name)) if len(files[image.image_id]) > 1 else image
        for image in images
    ]


_MISSING = "annotation file missing"


def _parse(path: Path) -> ElementTree.Element | str:
    """Returns the root element of an annotation file, or a description of its problem."""
    if not path.is_file():
        return _MISSING
    try:
        return read_xml(path)
    except UserError as error:
        return f"annotation file unreadable: {str(error).removeprefix(f'{path}: ')}"


def _number(text: str | None) -> float | None:
    """Returns a finite number, or None."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None
