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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dcn_det.data.findings import Findings, first_few
from dcn_det.data.formats.base import DataFormat
from dcn_det.data.records import ImageRecord, ObjectRecord, Records, image_id, named_together, pack
from dcn_det.data.rules import MAX_SIDE, name_problem, screen
from dcn_det.errors import UserError, did_you_mean, shown
from dcn_det.files import read_text, read_xml
from dcn_det.images import SUFFIXES, image_size

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
        if self.paths.folder is not None:
            return reader.read_folder(self.paths.folder)
        return reader.read(self.paths.sets or (), self.paths.without)


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
    records = _Reader(root, classes or VOC_CLASSES, findings, labelled, classes is not None, corners).read(sets)
    findings.refuse()
    return records


@dataclass(frozen=True)
class _Job:
    """An image to read.

    Attributes:
        name: of the image, without suffix.
        annotation, image: paths of the files.
    """

    name: str
    annotation: Path
    image: Path


def list_images(root: Path, sets: Sequence[str]) -> list[tuple[Path, str]]:
    """Returns the images of image sets, in order: the folder of the year (such as ``VOC2007``) and the image name.

    Raises:
        UserError: a set is missing, or all sets are empty.
    """
    jobs: list[tuple[Path, str]] = []
    for name in sets:
        path = root / name
        if not path.is_file():
            raise UserError(f"no image set {path}; expected a file such as VOC2007/ImageSets/Main/trainval.txt")
        lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
        jobs += [(path.parents[2], line) for line in _names(lines)]
    if not jobs:
        raise UserError(f"image set {', '.join(sets)} in {root} is empty")
    return jobs


def _names(lines: list[str]) -> list[str]:
    """Returns the image names in the lines of a set, without folders and suffixes."""
    # Sets of a single class have a second column of -1, 0 or 1; otherwise, spaces are part of the name.
    words = [line.rsplit(maxsplit=1) for line in lines]
    if all(len(each) == 2 and each[1] in ("-1", "0", "1") for each in words):
        lines = [first for first, _ in words]
    names = [line.replace("\\", "/").rsplit("/", 1)[-1] for line in lines]
    return [name[: -len(suffix)] if (suffix := Path(name).suffix).lower() in _KNOWN else name for name in names]


_KNOWN = {*SUFFIXES, ".xml"}


class _Reader:
    """Reader of image sets.

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

    def read(self, sets: Sequence[str], without: Sequence[str] = ()) -> Records:
        jobs = list_images(self.root, sets)
        excluded = set(list_images(self.root, without)) if without else set()
        left_out = [name for _, name in dict.fromkeys(job for job in jobs if job in excluded)]
        jobs = [job for job in jobs if job not in excluded]
        if not jobs:
            raise UserError(f"all images of {', '.join(sets)} in {self.root} are also in {', '.join(without)}")
        unique = list(dict.fromkeys(jobs))
        files = {base: _image_files(base / "JPEGImages") for base in {base for base, _ in unique}}
        notes = []
        if left_out:
            notes.append(f"images also in {', '.join(without)}, left out: {len(left_out)} ({first_few(left_out)})")
        if len(jobs) > len(unique):
            repeated = [name for (_, name), count in Counter(jobs).items() if count > 1]
            notes.append(f"repeated image names, counted once: {first_few(repeated)}")
        found = [
            _Job(
                name,
                base / "Annotations" / f"{name}.xml",
                base / "JPEGImages" / files[base].get(name, f"{name}.jpg"),
            )
            for base, name in unique
        ]
        return self._read(found, named_together([self.root / each for each in sets]), notes)

    def read_folder(self, folder: str) -> Records:
        """Reads all XML files in a folder and below. Their images have the same name, there or anywhere below it."""
        place = self.root / folder
        annotations, images = _annotated(place)
        if not annotations:
            raise UserError(f"no XML file in {place} or below")
        jobs = []
        for path in annotations:
            near = images.get(path.stem, [])
            same = [image for image in near if image.parent == path.parent]
            if not same and len(near) > 1:
                self.findings.error("several images of one name", f"{path}: {first_few(near, 2)}")
                continue
            jobs.append(_Job(path.stem, path, (same or near or [path.with_suffix(".jpg")])[0]))
        known = {job.image for job in jobs}
        extra = [image for found in images.values() for image in found if image not in known]
        notes = [f"images without XML file, left out: {len(extra)} ({first_few(extra, 2)})"] if extra else []
        return self._read(jobs, place, notes)

    def _read(self, jobs: Sequence[_Job], source: str | Path, notes: list[str]) -> Records:
        with ThreadPoolExecutor(8) as pool:
            trees = list(pool.map(lambda job: _parse(job.annotation), jobs))
        self.findings.images = len(jobs)
        images = [each for job, tree in zip(jobs, trees) if (each := self._image(job, tree)) is not None]
        records = pack(images, list(self.classes), source)
        if self._others:
            others = [f"{shown(name)} {count}" for name, count in self._others.most_common()]
            notes.append(f"objects of other classes, left out: {first_few(others)}")
            self._refuse_misspelt(records)
        return screen(records.noted(*notes), self.findings, self.labelled)

    def _refuse_misspelt(self, records: Records) -> None:
        used = {records.categories[label].name for label in records.labels.tolist()}
        for name in self.classes.keys() - used:
            near = did_you_mean(name, self._others)
            if near:
                raise UserError(f"data.classes: no object of class '{name}' in {records.source}{near}")

    def _image(self, job: _Job, tree: ElementTree.Element | str) -> ImageRecord | None:
        name, path, file = job.name, job.annotation, job.image
        problem = name_problem(name)
        if problem:
            self.findings.error("image without a usable name", problem)
            return None
        relative = file.relative_to(self.root).as_posix()
        ident = image_id(name, relative)
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


def _annotated(folder: Path) -> tuple[list[Path], dict[str, list[Path]]]:
    """Returns the XML files in a folder and below, and the images by name without suffix, both sorted."""
    annotations: list[Path] = []
    images: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        suffix = path.suffix.lower()
        if path.name.startswith("."):
            continue
        if suffix == ".xml":
            annotations.append(path)
        elif suffix in SUFFIXES:
            images.setdefault(path.stem, []).append(path)
    return annotations, images


def _image_files(folder: Path) -> dict[str, str]:
    """Returns image file names by name without suffix; JPEG files are preferred."""
    found = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in SUFFIXES) if folder.is_dir() else []
    found.sort(key=lambda name: Path(name).suffix.lower() in (".jpg", ".jpeg"))
    return {Path(name).stem: name for name in found}


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
