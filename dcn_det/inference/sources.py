"""Where images come from: files, folders, patterns, lists, addresses, videos and cameras."""

from __future__ import annotations

import glob
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import cv2
import numpy as np

from dcn_det.download.content import content_of, is_address
from dcn_det.errors import UserError
from dcn_det.exif import by_pillow
from dcn_det.files import read_text
from dcn_det.images import SUFFIXES, Image, as_rgb, file_content, image_of

T = TypeVar("T")

VIDEO_SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"}
"""Suffixes of video files, in lower case."""
LIST_SUFFIXES = {".txt", ".lst"}
"""Suffixes of text files that list images, in lower case."""
RATE = 25.0
"""Images per second of a camera that states no rate."""


@dataclass(frozen=True)
class Shot:
    """An image to run a network on.

    Attributes:
        source: file, address or number of the camera.
        image: uint8 (H, W, 3) RGB, upright.
        frame: position in a video, from 0; None for a still image.
        rate: images per second of a video, counting those that are used; 0 for a still image.
    """

    source: str
    image: Image
    frame: int | None = None
    rate: float = 0.0


@dataclass(frozen=True)
class Source:
    """An image, a video or a camera.

    Attributes:
        place: file, address, or number of the camera.
        kind: what it is.
    """

    place: str
    kind: Literal["image", "video", "camera"] = "image"

    def shots(self, every: int = 1) -> Iterator[Shot]:
        """Yields the image, or every ``every``-th frame of a video or of a camera, which does not end.

        Raises:
            UserError: it cannot be read.
        """
        if self.kind == "image":
            yield Shot(self.place, _read(self.place))
        else:
            yield from _frames(self, every)

    def count(self, every: int = 1) -> int | None:
        """Returns the number of shots, approximately for a video; None if it is unknown."""
        if self.kind == "image":
            return 1
        if self.kind == "camera":
            return None
        capture = cv2.VideoCapture(self.place)
        frames = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        capture.release()
        return -(-frames // every) if frames > 0 else None


def find_sources(given: Iterable[str | os.PathLike[str]], recursive: bool = False) -> list[Source]:
    """Returns the images, videos and cameras that arguments stand for.

    Args:
        given: image and video files; folders of images; patterns with ``*``, ``?`` or ``[...]`` (``**`` for any
            subfolders); text files with one file or address per line, relative to the folder of the text file;
            addresses of images (http or https); numbers of cameras.
        recursive: whether images in subfolders are included.

    Raises:
        UserError: one of them does not exist, or contains no images.
    """
    found: list[Source] = []
    for each in given:
        found += _sources(os.fspath(each), recursive)
    return found


def apply(run: Callable[[Image], T], images: Any, recursive: bool, every: int) -> T | list[T] | Iterator[T]:
    """Applies a function to one image, or to all images that an argument stands for.

    Args:
        run: the function.
        images: see :meth:`dcn_det.inference.predictor.Predictor.__call__`.
        recursive, every: see :func:`find_sources` and :meth:`Source.shots`.

    Returns:
        A result for a single image; an iterator for a video or a camera; otherwise a list.

    Raises:
        UserError: an image does not exist or cannot be read.
        ValueError: ``every`` is below 1.
    """
    if every < 1:
        raise ValueError(f"every is {every}, expected at least 1")
    if isinstance(images, list | tuple):
        return [result for each in images for result in _listed(apply(run, each, recursive, every))]
    if isinstance(images, int) and not isinstance(images, bool):
        images = str(images)
    if not isinstance(images, str | os.PathLike):
        return run(as_rgb(images))
    sources = find_sources([images], recursive)
    results = (run(shot.image) for source in sources for shot in source.shots(every))
    if any(source.kind != "image" for source in sources):
        return results
    return next(results) if sources == [Source(os.fspath(images))] else list(results)


def _listed(found: T | list[T] | Iterator[T]) -> Iterable[T]:
    return found if isinstance(found, list | Iterator) else [found]


def _sources(given: str, recursive: bool) -> list[Source]:
    path = Path(given)
    if is_address(given):
        return [Source(given)]
    if path.is_dir():
        inside = sorted(path.rglob("*") if recursive else path.iterdir())
        images = [Source(str(item)) for item in inside if _is_image(item)]
        if not images:
            hint = "" if recursive else "; --recursive includes its subfolders"
            raise UserError(f"folder '{given}' contains no images ({', '.join(sorted(SUFFIXES))}){hint}")
        return images
    if path.is_file() and path.suffix.lower() in LIST_SUFFIXES:
        return _in_list(path)
    if path.exists():
        return [_of_file(given)]
    if re.fullmatch(r"[0-9]{1,3}", given):
        return [Source(given, "camera")]
    if glob.has_magic(given):
        # Path.glob takes relative patterns only, and refuses some that shells take.
        files = [each for each in sorted(glob.glob(given, recursive=True)) if Path(each).is_file()]  # noqa: PTH207
        if not files:
            raise UserError(f"no file matches '{given}'")
        return [_of_file(each) for each in files]
    raise UserError(f"image '{given}' does not exist")


def _of_file(path: str) -> Source:
    return Source(path, "video" if Path(path).suffix.lower() in VIDEO_SUFFIXES else "image")


def _in_list(path: Path) -> list[Source]:
    lines = [line.strip() for line in read_text(path).splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines:
        raise UserError(f"list '{path}' names no images")
    return [Source(line) if is_address(line) else _of_file(str(path.parent / line)) for line in lines]


def _is_image(path: Path) -> bool:
    # macOS adds a file "._name.jpg" with attributes next to each image on foreign disks.
    return path.suffix.lower() in SUFFIXES and not path.name.startswith("._") and not path.is_dir()


def _read(place: str) -> Image:
    data = content_of(place) if is_address(place) else file_content(place)
    image = image_of(data, place, upright=True)
    if _frame_count(data) > 1:
        warnings.warn("of images with several frames or pages, the first is used", stacklevel=2)
    return image


def _frame_count(data: bytes) -> int:
    """Returns the number of frames of an animation, or of pages of a TIFF."""
    if data.startswith(b"\xff\xd8"):  # previews in a JPEG are no animation
        return 1
    return by_pillow(data, lambda opened: int(getattr(opened, "n_frames", 1))) or 1


def _frames(source: Source, every: int) -> Iterator[Shot]:
    what = f"{source.kind} '{source.place}'"
    capture = cv2.VideoCapture(int(source.place) if source.kind == "camera" else source.place)
    try:
        if not capture.isOpened():
            raise UserError(f"cannot open {what}")
        rate = capture.get(cv2.CAP_PROP_FPS)
        rate = (rate if 0 < rate < 1000 else RATE) / every
        number = 0
        while capture.grab():
            if number % every == 0:
                good, image = capture.retrieve()
                if good and image is not None:
                    pixels = np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), dtype=np.uint8)
                    yield Shot(source.place, pixels, number, rate)
            number += 1
        if number == 0:
            raise UserError(f"cannot read {what}: it has no frames")
    finally:
        capture.release()
