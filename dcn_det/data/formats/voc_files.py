"""Files of Pascal VOC's format: which annotation file belongs to which image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dcn_det.data.findings import Findings, first_few
from dcn_det.errors import UserError
from dcn_det.files import read_text, read_xml
from dcn_det.images import SUFFIXES

_KNOWN = {*SUFFIXES, ".xml"}


@dataclass(frozen=True)
class Job:
    """An image to read.

    Attributes:
        name: of the image, without suffix; the id of an image whose name consists of digits is that number. Empty if
            ids must not depend on names.
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
    return [(path.parents[2], name) for path, name in _listed(root, sets)]


def set_names(lines: Sequence[str]) -> list[str]:
    """Returns the image names in the lines of an image set, without folders and suffixes."""
    # Sets of a single class have a second column of -1, 0 or 1; otherwise, spaces are part of the name.
    stripped = [line.strip() for line in lines if line.strip()]
    words = [line.rsplit(maxsplit=1) for line in stripped]
    if all(len(each) == 2 and each[1] in ("-1", "0", "1") for each in words):
        stripped = [first for first, _ in words]
    names = [line.replace("\\", "/").rsplit("/", 1)[-1] for line in stripped]
    return [name[: -len(suffix)] if (suffix := Path(name).suffix).lower() in _KNOWN else name for name in names]


def _listed(root: Path, sets: Sequence[str]) -> list[tuple[Path, str]]:
    """Returns the image names of sets in order, each with its set."""
    found: list[tuple[Path, str]] = []
    for each in sets:
        path = root / each
        if not path.is_file():
            raise UserError(f"no image set {path}; expected a file such as VOC2007/ImageSets/Main/trainval.txt")
        found += [(path, name) for name in set_names(read_text(path).splitlines())]
    if not found:
        raise UserError(f"image set {', '.join(sets)} in {root} is empty")
    return found


def jobs_of_sets(root: Path, sets: Sequence[str], without: Sequence[str]) -> tuple[list[Job], list[str]]:
    """Returns the images of image sets in VOC's layout, once each, and notes.

    Raises:
        UserError: a set is missing, or no image is left.
    """
    listed = list_images(root, sets)
    excluded = set(list_images(root, without)) if without else set()
    left_out = [name for _, name in dict.fromkeys(each for each in listed if each in excluded)]
    kept = [each for each in listed if each not in excluded]
    if not kept:
        raise UserError(f"all images of {', '.join(sets)} in {root} are also in {', '.join(without)}")
    unique = list(dict.fromkeys(kept))
    files = {base: _image_files(base / "JPEGImages") for base in {base for base, _ in unique}}
    notes = []
    if left_out:
        notes.append(_left_out(without, left_out))
    if len(kept) > len(unique):
        repeated = [name for (_, name), count in Counter(kept).items() if count > 1]
        notes.append(f"repeated image names, counted once: {first_few(repeated)}")
    jobs = [
        Job(name, base / "Annotations" / f"{name}.xml", base / "JPEGImages" / files[base].get(name, f"{name}.jpg"))
        for base, name in unique
    ]
    return jobs, notes


def _left_out(without: Sequence[str], names: Sequence[str]) -> str:
    return f"images also in {', '.join(without)}, left out: {len(names)} ({first_few(names)})"


def _image_files(folder: Path) -> dict[str, str]:
    """Returns image file names by name without suffix; JPEG files are preferred."""
    found = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in SUFFIXES) if folder.is_dir() else []
    found.sort(key=lambda name: Path(name).suffix.lower() in (".jpg", ".jpeg"))
    return {Path(name).stem: name for name in found}


def jobs_of_folder(
    root: Path, folder: str, sets: Sequence[str], without: Sequence[str], findings: Findings
) -> tuple[list[Job], list[str]]:
    """Returns the XML files in a folder and below with their images, and notes.

    Args:
        root: of the data set.
        folder, sets, without: see ``VocSplitConfig``.
        findings: receives XML files whose image is ambiguous.

    Raises:
        UserError: there is no XML file, a set is missing, or no image is left.
    """
    place, notes = root / folder, []
    if not place.is_relative_to(root):
        raise UserError(f"folder {folder}: outside data.root {root}; give a path relative to it")
    annotations = sorted(
        path for path in place.rglob("*") if path.suffix.lower() == ".xml" and not path.name.startswith(".")
    )
    if not annotations:
        raise UserError(f"no XML file in {place} or below")
    images = _Images(root, place)
    if sets:
        annotations = _of_names(annotations, dict.fromkeys(name for _, name in _listed(root, sets)), place)
    if without:
        excluded = {name for _, name in _listed(root, without)}
        left_out = [path.stem for path in annotations if path.stem in excluded]
        annotations = [path for path in annotations if path.stem not in excluded]
        notes += [_left_out(without, left_out)] if left_out else []
        if not annotations:
            raise UserError(f"all images of {place} are also in {', '.join(without)}")
    jobs = []
    for path in annotations:
        found = images.of(path)
        if len(found) > 1:
            findings.error("several images of one name", f"{path}: {first_few(found, 2)}")
        else:
            jobs.append(Job("", path, (found or [path.with_suffix(".jpg")])[0]))
    extra = sorted(images.inside - {job.image for job in jobs}) if not sets and not without else []
    notes += [f"images without XML file, left out: {len(extra)} ({first_few(extra, 2)})"] if extra else []
    return jobs, notes


def _of_names(annotations: Sequence[Path], names: dict[str, None], place: Path) -> list[Path]:
    """Returns the files of the listed images, in the order of the list; those that are missing by their likely name."""
    found: dict[str, list[Path]] = {}
    for path in annotations:
        for key in {path.stem, *set_names([path.stem])}:
            found.setdefault(key, []).append(path)
    return [path for name in names for path in found.get(name, [place / f"{name}.xml"])]


class _Images:
    """Images by name, for annotation files.

    Args:
        root: of the data set; searched if the folder does not have an image.
        folder: of the annotation files.
    """

    def __init__(self, root: Path, folder: Path) -> None:
        self._root, self._folder = root, folder
        self._near = self._by_name(folder)
        self._all: dict[str, list[Path]] | None = None if folder != root else {}
        self.inside = {path for found in self._near.values() for path in found}
        """All images in the folder and below."""

    def _by_name(self, folder: Path) -> dict[str, list[Path]]:
        found: dict[str, list[Path]] = {}
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
                found.setdefault(path.stem, []).append(path)
                found.setdefault(path.name, []).append(path)
        return found

    def of(self, annotation: Path) -> list[Path]:
        """Returns the image of an XML file, several if its name does not say which, or none.

        ``a.xml`` belongs to ``a.jpg``, ``a.jpg.xml`` as well; otherwise, ``filename`` in the file names the image.
        """
        near = self._near.get(annotation.stem)
        if near is None and self._all is None:
            self._all = self._by_name(self._root)
        found = near or (self._all or {}).get(annotation.stem) or self._stated(annotation)
        same = [image for image in found if image.parent == annotation.parent]
        if same or len(found) < 2:
            return (same or found)[:1]
        # annotations/train/a.xml belongs to images/train/a.jpg, not to images/val/a.jpg.
        folders = set(annotation.relative_to(self._root).parts[:-1])
        shared = [len(folders & set(image.relative_to(self._root).parts[:-1])) for image in found]
        return [image for image, count in zip(found, shared) if count == max(shared)]

    def _stated(self, annotation: Path) -> list[Path]:
        try:
            name = (read_xml(annotation).findtext("filename") or "").strip()
        except UserError:  # reported when the file is read
            return []
        name = name.replace("\\", "/").rsplit("/", 1)[-1]
        return self._near.get(name) or (self._all or {}).get(name) or []
