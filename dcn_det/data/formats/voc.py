"""Pascal VOC: image sets, with one XML file per image.

An image set is a text file of image names such as ``VOC2007/ImageSets/Main/trainval.txt``; ``Annotations`` and
``JPEGImages`` are two folders up. Everingham et al., "The Pascal Visual Object Classes (VOC) Challenge", IJCV 2010;
development kits of 2007 and 2012.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from dcn_det.data.check import AnchorCheck, Report
from dcn_det.data.formats.base import DataFormat
from dcn_det.data.records import ImageRecord, ObjectRecord, Records, first_few, pack
from dcn_det.errors import UserError
from dcn_det.files import read_text
from dcn_det.images import read_image
from dcn_det.progress import Count

if TYPE_CHECKING:
    from dcn_det.config.data import VocSplitConfig

_NAMES = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep "
    "sofa train tvmonitor"
)
VOC_CLASSES = tuple(_NAMES.split())


class VocFormat(DataFormat):
    """Image sets, ``sets`` of a split."""

    paths: VocSplitConfig

    @property
    def _classes(self) -> tuple[str, ...]:
        return self.data.classes or VOC_CLASSES

    def read(self, labelled: bool = True) -> Records:
        return read_voc(self.root, self.paths.sets, self._classes, labelled)

    def check(self, anchors: AnchorCheck | None, workers: int = 0, progress: Count | None = None) -> Report:
        from dcn_det.data.formats.voc_check import check_voc

        return check_voc(self.root, self.paths.sets, self._classes, self.split == "train", anchors, workers, progress)


def list_images(root: Path, sets: Sequence[str]) -> list[tuple[Path, str]]:
    """What image sets name, one after the other: the folder of the year (``VOC2007``) and the name of the image.

    Raises:
        UserError: a set is missing, or all are empty.
    """
    jobs: list[tuple[Path, str]] = []
    for name in sets:
        path = root / name
        if not path.is_file():
            raise UserError(f"no image set {path}; expected a file such as VOC2007/ImageSets/Main/trainval.txt")
        base = path.parents[2]
        # Sets of one class have a second column; -1 marks images without that class.
        lines = [line.split() for line in read_text(path).splitlines() if line.strip()]
        jobs += [(base, words[0]) for words in lines]
    if not jobs:
        raise UserError(f"image set {', '.join(sets)} in {root} is empty")
    return jobs


def read_voc(root: Path, sets: Sequence[str], classes: Sequence[str] = VOC_CLASSES, labelled: bool = True) -> Records:
    """Reads the annotations of image sets.

    An image id consists of the digits of the name: ``2008_000002`` gives 2008000002. Boxes become half-open and count
    from 0: (xmin - 1, ymin - 1, xmax, ymax). Difficult objects are marked as crowds.

    Args:
        root: folder of ``VOC2007`` and so on.
        sets: image set files relative to ``root``, taken together.
        classes: names by label; objects of other classes are an error.
        labelled: whether an image without annotation file is an error; if not, it has no objects, and its size is read
            from the image.

    Returns:
        The images in the order of the sets.

    Raises:
        UserError: a file is missing or malformed, or an image is listed twice.
    """
    jobs = list_images(root, sets)
    with ThreadPoolExecutor(8) as pool:
        images = list(pool.map(lambda job: _read_image(root, job[0], job[1], classes, labelled), jobs))
    return pack(images, classes, root / sets[0])


def _read_image(root: Path, base: Path, name: str, classes: Sequence[str], labelled: bool) -> ImageRecord:
    digits = name.replace("_", "")
    if not digits.isdecimal():
        raise UserError(f"image name '{name}' of a set in {base} is not made of digits, as VOC's are")
    path = base / "Annotations" / f"{name}.xml"
    file = base / "JPEGImages" / f"{name}.jpg"
    relative = str(file.relative_to(root))
    if not path.is_file() and not labelled:
        height, width = read_image(file).shape[:2]
        return ImageRecord(int(digits), relative, height, width)
    try:
        tree = ElementTree.parse(path).getroot()
    except OSError as error:
        raise UserError(f"cannot read annotation file {path}: {error.strerror}") from error
    except ElementTree.ParseError as error:
        raise UserError(f"annotation file {path} is not XML: {error}") from error
    height, width = (whole(tree, f"size/{key}", path) for key in ("height", "width"))
    objects = tuple(_object(node, path, classes) for node in tree.iterfind("object"))
    return ImageRecord(int(digits), relative, height, width, objects)


def _object(node: ElementTree.Element, path: Path, classes: Sequence[str]) -> ObjectRecord:
    name = (node.findtext("name") or "").strip()
    if name not in classes:
        raise UserError(f"{path}: object of class '{name}', which is none of {first_few(classes)}")
    return ObjectRecord(classes.index(name), read_box(node, path), is_difficult(node))


def read_box(node: ElementTree.Element, path: Path) -> tuple[float, float, float, float]:
    """Returns the half-open box of an object, counted from 0. VOC counts from 1, and the last pixel is inside.

    Raises:
        UserError: a corner is absent or not a number.
    """
    x1, y1, x2, y2 = (number(node, f"bndbox/{key}", path) for key in ("xmin", "ymin", "xmax", "ymax"))
    return x1 - 1, y1 - 1, x2, y2


def is_difficult(node: ElementTree.Element) -> bool:
    """Returns whether an object is marked as difficult."""
    return (node.findtext("difficult") or "0").strip() == "1"


def whole(node: ElementTree.Element, key: str, path: Path) -> int:
    """A number of pixels in an annotation file; decimals are dropped."""
    value = number(node, key, path)
    if not math.isfinite(value):
        raise UserError(f"{path}: '{key}' is {value}, expected a number")
    return int(value)


def number(node: ElementTree.Element, key: str, path: Path) -> float:
    """A number in an annotation file, which may be infinite or none at all.

    Raises:
        UserError: it is absent or none.
    """
    text = node.findtext(key)
    try:
        return float(text or "")
    except ValueError:
        raise UserError(f"{path}: '{key}' is {text!r}, expected a number") from None
