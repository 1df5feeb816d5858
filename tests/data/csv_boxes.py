"""A data format from outside the package: a folder of images, and a CSV file with one box per line."""

import csv
from pathlib import Path
from typing import Literal

from dcn_det.config.data import DataConfig, SplitConfig
from dcn_det.config.registry import register_format
from dcn_det.data.findings import Findings
from dcn_det.data.formats.base import DataFormat
from dcn_det.data.records import ImageRecord, ObjectRecord, Records, pack
from dcn_det.data.rules import screen
from dcn_det.errors import UserError
from dcn_det.images import read_image


class CsvSplitConfig(SplitConfig):
    images: str
    boxes: str
    """Lines of image, class, x1, y1, x2, y2, under a header."""


class CsvDataConfig(DataConfig):
    kind: Literal["csv_boxes"] = "csv_boxes"
    train: CsvSplitConfig
    test: CsvSplitConfig | None = None
    classes: tuple[str, ...]


class CsvBoxes(DataFormat):
    data: CsvDataConfig
    paths: CsvSplitConfig

    @property
    def folder(self) -> Path:
        return self.root / self.paths.images

    def read(self, findings: Findings, labelled: bool = True) -> Records:
        path = self.root / self.paths.boxes
        objects: dict[str, list[ObjectRecord]] = {file.name: [] for file in sorted(self.folder.iterdir())}
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                if row["class"] not in self.data.classes:
                    raise UserError(f"{path}: class '{row['class']}' is none of data.classes")
                box = (float(row["x1"]), float(row["y1"]), float(row["x2"]), float(row["y2"]))
                objects[row["image"]].append(ObjectRecord(self.data.classes.index(row["class"]), box))
        images = []
        for number, (name, here) in enumerate(objects.items(), start=1):
            height, width = read_image(self.folder / name).shape[:2]
            images.append(ImageRecord(number, name, height, width, tuple(here)))
        return screen(pack(images, self.data.classes, path), findings, labelled)


register_format("csv_boxes", CsvDataConfig, CsvBoxes)
