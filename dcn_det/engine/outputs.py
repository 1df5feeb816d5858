"""Output files of ``dcn-det infer``, for any task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import cv2
import numpy as np

from dcn_det.download.content import is_address
from dcn_det.engine.task import Task
from dcn_det.errors import UserError, did_you_mean
from dcn_det.files import write_bytes, write_json
from dcn_det.images import Image, sheet, write_image
from dcn_det.inference.sources import Shot

PICTURES, JSON = "pictures", "json"
DEFAULT = (PICTURES, JSON)
"""What is written unless said otherwise."""


class Outputs:
    """Writes the results of images as they come, and what belongs to all of them at the end.

    Args:
        task: what the results are.
        folder: output folder; created.
        kinds: ``pictures`` (JPEG, or an MP4 file per video), ``json`` (a record per image, and further files of the
            task), or formats of the task.
        score: minimum score to draw; None for the task's own.
        shown: number of images on ``sheet.jpg``.

    Raises:
        UserError: the task has no such format.
    """

    def __init__(
        self,
        task: type[Task[Any]],
        folder: Path,
        kinds: Sequence[str] = DEFAULT,
        score: float | None = None,
        shown: int = 0,
    ) -> None:
        known = [PICTURES, JSON, *task.writers]
        for kind in kinds:
            if kind not in known:
                raise UserError(
                    f"--write: {task.title} has no '{kind}'; allowed: {', '.join(known)}{did_you_mean(kind, known)}"
                )
        folder.mkdir(parents=True, exist_ok=True)
        self.task, self.folder, self.kinds, self.score, self.shown = task, folder, set(kinds), score, shown
        self.writers = [task.writers[kind](folder, score) for kind in dict.fromkeys(kinds) if kind in task.writers]
        self.records: list[dict[str, Any]] = []
        self._cells: list[Image] = []
        self._used: set[str] = set()
        self._film: Film | None = None
        self._name = ""
        self._last = "", 0

    def add(self, shot: Shot, result: Any) -> None:
        """Writes the result of an image."""
        source, last = self._last
        if shot.frame is None or shot.source != source or shot.frame <= last:
            self._end_film()
            self._name = unique_name(shot.source, self._used)
        self._last = shot.source, shot.frame or 0
        name = self._name if shot.frame is None else f"{self._name}_{shot.frame:06d}"
        wanted = PICTURES in self.kinds
        if wanted or len(self._cells) < self.shown:
            picture = self.task.draw(shot.image, result, self.score)
            if len(self._cells) < self.shown:
                self._cells.append(picture)
            if wanted and shot.frame is None:
                write_image(self.folder / f"{name}.jpg", picture)
            elif wanted:
                self._film = self._film or Film(self.folder / f"{self._name}.mp4", picture, shot.rate)
                self._film.add(picture)
        if JSON in self.kinds:
            for ending, content in self.task.files(result).items():
                write_bytes(self.folder / f"{name}{ending}", content)
            place: dict[str, Any] = {"image": shot.source}
            if shot.frame is not None:
                place["frame"] = shot.frame
            self.records.append({**place, **self.task.record(result)})
        for writer in self.writers:
            writer.add(shot, name, result)

    def close(self) -> None:
        """Writes what belongs to all images so far."""
        self._end_film()
        if JSON in self.kinds:
            write_json(self.folder / self.task.results_file, self.records)
        for writer in self.writers:
            writer.close()
        if self._cells:
            write_image(self.folder / "sheet.jpg", sheet(self._cells, columns=min(4, len(self._cells))))

    def _end_film(self) -> None:
        if self._film is not None:
            self._film.close()
            self._film = None


class Film:
    """A video file; it appears under its name when it is complete.

    Args:
        path: ends with ``.mp4``.
        first: an image of the size of all others, uint8 (H, W, 3) RGB.
        rate: images per second.

    Raises:
        UserError: it cannot be written.
    """

    def __init__(self, path: Path, first: Image, rate: float) -> None:
        self.path, self._part = path, path.with_name(f".{path.stem}.part.mp4")
        height, width = first.shape[:2]
        self._writer = cv2.VideoWriter(str(self._part), cv2.VideoWriter.fourcc(*"mp4v"), rate, (width, height))
        if not self._writer.isOpened():
            raise UserError(f"{path}: this build of OpenCV cannot write MP4 video; choose other results with --write")

    def add(self, image: Image) -> None:
        """Appends an image, uint8 (H, W, 3) RGB."""
        self._writer.write(np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2BGR)))

    def close(self) -> None:
        """Completes the file."""
        self._writer.release()
        self._part.replace(self.path)


def unique_name(source: str, used: set[str]) -> str:
    """Returns the name of a file or address without suffix, with a number if it is in ``used``, and adds it."""
    stem = Path(urlsplit(source).path if is_address(source) else source).stem or "image"
    name, number = stem, 1
    while name in used:
        number += 1
        name = f"{stem}_{number}"
    used.add(name)
    return name
