"""Reads Pascal VOC image sets with one XML file an image.

A set is a text file of image names, ``VOC2007/ImageSets/Main/trainval.txt``; two folders up lie ``Annotations`` and
``JPEGImages``. Everingham et al., "The Pascal Visual Object Classes (VOC) Challenge", IJCV 2010; development kits of
2007 and 2012.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dcn_det.data.index import DatasetIndex, Records, build_index, first_few
from dcn_det.errors import UserError
from dcn_det.files import read_text
from dcn_det.images import read_image
from dcn_det.structures import Category

_NAMES = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep "
    "sofa train tvmonitor"
)
VOC_CLASSES = tuple(_NAMES.split())


@dataclass(frozen=True)
class VocObject:
    """One annotated object.

    Attributes:
        name: class.
        box: xmin, ymin, xmax, ymax as written: pixels counted from 1, the last one inside.
        difficult: not trained on, and neither reward nor penalty in testing.
    """

    name: str
    box: tuple[float, float, float, float]
    difficult: bool


@dataclass(frozen=True)
class VocImage:
    """One annotation file.

    Attributes:
        image_id: made of the digits of the name, ``2008_000002`` gives 2008000002.
        name: without suffix, as image sets and result files have it.
        file_name: of the image, relative to the data set's root.
        height, width: pixels.
        objects: may be none.
    """

    image_id: int
    name: str
    file_name: str
    height: int
    width: int
    objects: tuple[VocObject, ...]


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


def read_sets(root: Path, sets: Sequence[str], classes: Sequence[str], labelled: bool = True) -> list[VocImage]:
    """Reads the annotations of image sets.

    Args:
        root: holds ``VOC2007`` and so on.
        sets: image set files relative to ``root``, taken together.
        classes: objects of other classes are an error.
        labelled: whether an image without annotation file is an error; else such images have no objects, and their
            size is read from the image.

    Returns:
        The images in the order of the sets.

    Raises:
        UserError: a file is missing or malformed, or an image is in two sets.
    """
    jobs = list_images(root, sets)
    with ThreadPoolExecutor(8) as pool:
        images = list(pool.map(lambda job: _read_image(root, job[0], job[1], classes, labelled), jobs))
    seen: dict[int, str] = {}
    for image in images:
        if image.image_id in seen:
            raise UserError(f"images '{seen[image.image_id]}' and '{image.name}' of {', '.join(sets)} are the same")
        seen[image.image_id] = image.name
    return images


def load_voc(
    root: Path,
    sets: Sequence[str],
    classes: Sequence[str] | None = None,
    empty_images: Literal["keep", "skip"] = "keep",
    bad_images: Literal["error", "skip"] = "error",
    labelled: bool = True,
) -> DatasetIndex:
    """Reads image sets as a data set.

    Boxes become half-open and counted from 0: (xmin - 1, ymin - 1, xmax, ymax). Difficult objects are marked as
    crowds are, that is, they are no training targets. Category ids count from 1 in the order of ``classes``.

    Args:
        root, sets, labelled: see :func:`read_sets`.
        classes: names in the order of the labels; the 20 of VOC unless given.
        empty_images, bad_images: see ``build_index``.

    Raises:
        UserError: see :func:`read_sets`, ``build_index``.
    """
    names = tuple(classes or VOC_CLASSES)
    images = read_sets(root, sets, names, labelled)
    objects = [(row, each) for row, image in enumerate(images) for each in image.objects]
    boxes = np.array([each.box for _, each in objects], np.float64).reshape(-1, 4)
    boxes[:, :2] -= 1
    records = Records(
        image_ids=np.array([image.image_id for image in images], np.int64),
        names=[image.file_name for image in images],
        sizes=np.array([(image.height, image.width) for image in images], np.int64),
        owners=np.array([row for row, _ in objects], np.int64),
        boxes=boxes,
        labels=np.array([names.index(each.name) for _, each in objects], np.int64),
        crowd=np.array([each.difficult for _, each in objects], np.bool_),
    )
    categories = tuple(Category(i, name) for i, name in enumerate(names, start=1))
    index = build_index(records, root / sets[0], root, categories, empty_images, bad_images)
    return replace(index, annotated=bool(objects))


def as_coco(images: Sequence[VocImage], classes: Sequence[str]) -> dict[str, Any]:
    """The same as a COCO annotation file, for COCO's metrics and reports; difficult objects become crowds.

    Boxes count from 0; category ids count from 1 in the order of ``classes``.
    """
    annotations: list[dict[str, Any]] = []
    for image in images:
        for each in image.objects:
            x1, y1, x2, y2 = each.box
            width, height = max(x2 - x1 + 1, 0), max(y2 - y1 + 1, 0)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image.image_id,
                    "category_id": classes.index(each.name) + 1,
                    "bbox": [x1 - 1, y1 - 1, width, height],
                    "area": width * height,
                    "iscrowd": int(each.difficult),
                }
            )
    keys = [{"id": i.image_id, "file_name": i.file_name, "height": i.height, "width": i.width} for i in images]
    return {
        "images": keys,
        "categories": [{"id": i, "name": name} for i, name in enumerate(classes, start=1)],
        "annotations": annotations,
    }


def _read_image(root: Path, base: Path, name: str, classes: Sequence[str], labelled: bool) -> VocImage:
    digits = name.replace("_", "")
    if not digits.isdecimal():
        raise UserError(f"image name '{name}' of a set in {base} is not made of digits, as VOC's are")
    path = base / "Annotations" / f"{name}.xml"
    file = base / "JPEGImages" / f"{name}.jpg"
    relative = str(file.relative_to(root))
    if not path.is_file() and not labelled:
        height, width = read_image(file).shape[:2]
        return VocImage(int(digits), name, relative, height, width, ())
    try:
        tree = ElementTree.parse(path).getroot()
    except OSError as error:
        raise UserError(f"cannot read annotation file {path}: {error.strerror}") from error
    except ElementTree.ParseError as error:
        raise UserError(f"annotation file {path} is not XML: {error}") from error
    height, width = (whole(tree, f"size/{key}", path) for key in ("height", "width"))
    objects = tuple(_object(node, path, classes) for node in tree.iterfind("object"))
    return VocImage(int(digits), name, relative, height, width, objects)


def _object(node: ElementTree.Element, path: Path, classes: Sequence[str]) -> VocObject:
    name = (node.findtext("name") or "").strip()
    if name not in classes:
        raise UserError(f"{path}: object of class '{name}', which is none of {first_few(list(classes))}")
    x1, y1, x2, y2 = (number(node, f"bndbox/{key}", path) for key in ("xmin", "ymin", "xmax", "ymax"))
    return VocObject(name, (x1, y1, x2, y2), (node.findtext("difficult") or "0").strip() == "1")


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
