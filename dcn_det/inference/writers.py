"""Files of results in the formats of other tools, for evaluation and as a start for annotation."""

from __future__ import annotations

import csv
import io
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from dcn_det.download.content import is_address
from dcn_det.files import write_bytes, write_json, write_text
from dcn_det.images import write_image
from dcn_det.inference.sources import Shot
from dcn_det.structures import Detection, Detections

MINIMUM_SCORE = 0.5
"""Minimum score of detections that are drawn or become annotations (exclusive)."""


class Writer(ABC):
    """Writes the results of many images in one format.

    Args:
        folder: output folder.
        score: minimum score of annotations (exclusive); None for ``default_score``.
    """

    default_score: ClassVar[float] = MINIMUM_SCORE

    def __init__(self, folder: Path, score: float | None = None) -> None:
        self.folder = folder
        self.score = self.default_score if score is None else score

    @abstractmethod
    def add(self, shot: Shot, name: str, result: Any) -> None:
        """Adds the result of an image.

        Args:
            shot: the image.
            name: unique name, without suffix.
            result: of the task, in pixels of the image.
        """

    def close(self) -> None:  # noqa: B027 - formats with one file per image have nothing left to do
        """Writes what is left to write."""


class TableWriter(Writer):
    """A CSV file: image, frame (empty for still images), and the columns of a subclass."""

    file: ClassVar[str]
    columns: ClassVar[Sequence[str]]

    def __init__(self, folder: Path, score: float | None = None) -> None:
        super().__init__(folder, score)
        self._rows: list[list[object]] = []

    @abstractmethod
    def rows(self, result: Any) -> Iterable[Sequence[object]]:
        """Returns the values of the columns, for each row of a result."""

    def add(self, shot: Shot, name: str, result: Any) -> None:
        frame = "" if shot.frame is None else shot.frame
        self._rows += [[shot.source, frame, *row] for row in self.rows(result)]

    def close(self) -> None:
        text = io.StringIO()
        lines = csv.writer(text, lineterminator="\n")
        lines.writerow(["image", "frame", *self.columns])
        lines.writerows(self._rows)
        # Names of files need not be text.
        write_bytes(self.folder / self.file, text.getvalue().encode("utf-8", "surrogateescape"))


class CsvWriter(TableWriter):
    """``detections.csv``: a line per detection, of any score; boxes are half-open, in pixels."""

    file = "detections.csv"
    columns = ("class", "score", "x1", "y1", "x2", "y2")

    def rows(self, result: Detections) -> Iterator[Sequence[object]]:
        for each in result:
            yield each.name, round(each.score, 5), *_rounded(each)


class CocoWriter(Writer):
    """``coco.json``: images, categories and annotations, each with a ``score``, in the format of COCO's annotations.

    File names are relative to the innermost folder that contains all files, which is ``info.folder``.
    """

    def __init__(self, folder: Path, score: float | None = None) -> None:
        super().__init__(folder, score)
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []
        self._categories: list[dict[str, Any]] = []

    def add(self, shot: Shot, name: str, result: Detections) -> None:
        self._categories = [{"id": each.id, "name": each.name} for each in result.categories]
        height, width = shot.image.shape[:2]
        image_id = len(self._images) + 1
        image = {"id": image_id, "file_name": shot.source, "height": height, "width": width}
        if shot.frame is not None:
            image |= {"file_name": f"{name}.jpg", "video": shot.source, "frame": shot.frame}
        self._images.append(image)
        for row in result.above(self.score).to_coco(image_id):
            box = [round(value, 2) for value in row["bbox"]]
            more = {"id": len(self._annotations) + 1, "bbox": box, "area": round(box[2] * box[3], 2), "iscrowd": 0}
            self._annotations.append({**row, **more})

    def close(self) -> None:
        files = [row for row in self._images if "frame" not in row and not is_address(row["file_name"])]
        paths = [Path(row["file_name"]).absolute() for row in files]
        folder = os.path.commonpath([path.parent for path in paths]) if paths else ""
        for row, path in zip(files, paths):
            row["file_name"] = os.path.relpath(path, folder)
        content = {"images": self._images, "categories": self._categories, "annotations": self._annotations}
        write_json(self.folder / "coco.json", {"info": {"folder": folder}, **content})


class YoloWriter(Writer):
    """``labels/NAME.txt``: class id, center, width and height as fractions of the image; names in ``classes.txt``."""

    _named = False

    def add(self, shot: Shot, name: str, result: Detections) -> None:
        height, width = shot.image.shape[:2]
        lines = []
        for x1, y1, x2, y2, each in _boxes(result.above(self.score)):
            center = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
            lines.append(" ".join([str(each.label), *(f"{value:.6f}" for value in center)]))
        write_text(self.folder / "labels" / f"{name}.txt", "".join(f"{line}\n" for line in lines))
        if not self._named:
            write_text(self.folder / "classes.txt", "".join(f"{category.name}\n" for category in result.categories))
            self._named = True


@dataclass(frozen=True)
class Shape:
    """A region with a label.

    Attributes:
        label: name of its class.
        kind: ``rectangle``, with two opposite corners, or ``polygon``.
        points: x, y in pixels; the center of the first pixel is at 0.5.
        note: what is known about it.
    """

    label: str
    kind: str
    points: Sequence[Sequence[float]]
    note: str = ""


class ShapesWriter(Writer):
    """``labelme/NAME.json`` for LabelMe; images that are not in files are written next to it."""

    @abstractmethod
    def shapes(self, result: Any) -> Iterable[Shape]:
        """Returns the regions of a result that become annotations."""

    def add(self, shot: Shot, name: str, result: Any) -> None:
        folder = self.folder / "labelme"
        image = f"{name}.jpg"
        if shot.frame is None and Path(shot.source).is_file():
            image = os.path.relpath(shot.source, folder)
        else:
            write_image(folder / image, shot.image)
        height, width = shot.image.shape[:2]
        content = {
            "version": "5.5.0",
            "flags": {},
            "shapes": [
                {
                    "label": each.label,
                    "points": [list(point) for point in each.points],
                    "group_id": None,
                    "description": each.note,
                    "shape_type": each.kind,
                    "flags": {},
                }
                for each in self.shapes(result)
            ],
            "imagePath": image,
            "imageData": None,
            "imageHeight": height,
            "imageWidth": width,
        }
        write_json(folder / f"{name}.json", content)


class LabelmeWriter(ShapesWriter):
    """Boxes for LabelMe."""

    def shapes(self, result: Detections) -> Iterator[Shape]:
        for x1, y1, x2, y2, each in _boxes(result.above(self.score)):
            yield Shape(each.name, "rectangle", [(x1, y1), (x2, y2)], f"score {each.score:.3f}")


class LabelStudioWriter(Writer):
    """``labelstudio.json``: tasks with predictions, for a labeling interface with ``<RectangleLabels name="label"
    toName="image">``. Files are named as in its local storage with the root folder as document root."""

    def __init__(self, folder: Path, score: float | None = None) -> None:
        super().__init__(folder, score)
        self._tasks: list[dict[str, Any]] = []

    def add(self, shot: Shot, name: str, result: Detections) -> None:
        height, width = shot.image.shape[:2]
        place = shot.source
        if shot.frame is not None:
            place = str(self.folder / "labelstudio" / f"{name}.jpg")
            write_image(place, shot.image)
        if Path(place).is_file():
            place = f"/data/local-files/?d={Path(place).resolve().as_posix().lstrip('/')}"
        regions = [
            {
                "id": f"{len(self._tasks)}_{number}",
                "type": "rectanglelabels",
                "from_name": "label",
                "to_name": "image",
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "score": round(each.score, 5),
                "value": {
                    "x": 100 * x1 / width,
                    "y": 100 * y1 / height,
                    "width": 100 * (x2 - x1) / width,
                    "height": 100 * (y2 - y1) / height,
                    "rotation": 0,
                    "rectanglelabels": [each.name],
                },
            }
            for number, (x1, y1, x2, y2, each) in enumerate(_boxes(result.above(self.score)))
        ]
        prediction = {"model_version": "dcn_det", "result": regions}
        self._tasks.append({"data": {"image": place}, "predictions": [prediction]})

    def close(self) -> None:
        write_json(self.folder / "labelstudio.json", self._tasks)


WRITERS: dict[str, type[Writer]] = {
    "coco": CocoWriter,
    "csv": CsvWriter,
    "yolo": YoloWriter,
    "labelme": LabelmeWriter,
    "labelstudio": LabelStudioWriter,
}
"""Writers of detections by format."""


def _rounded(each: Detection) -> list[float]:
    return [round(value, 2) for value in each.box]


def _boxes(detections: Detections) -> Iterator[tuple[float, float, float, float, Detection]]:
    """Yields x1, y1, x2, y2 in pixels, rounded to hundredths, and the detection."""
    for each in detections:
        x1, y1, x2, y2 = _rounded(each)
        yield x1, y1, x2, y2, each
