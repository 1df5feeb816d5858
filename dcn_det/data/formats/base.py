"""What a data format offers: one split of a data set, as records, to train on, to measure against and to check."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dcn_det.config.data import DataConfig
from dcn_det.data.check import AnchorCheck, Report, check_document
from dcn_det.data.records import Records, to_coco
from dcn_det.errors import UserError
from dcn_det.progress import Count

if TYPE_CHECKING:
    from dcn_det.data.index import DatasetIndex

Split = Literal["train", "test"]


class DataFormat(ABC):
    """One split of a data set.

    A format has to say how annotations are read; the rest follows from the records. Importing a format loads no torch,
    which evaluation does without.

    Args:
        data: the settings.
        split: ``train`` or ``test``; its block in ``data`` is not null.
    """

    paths: Any
    """Settings of the split: the block ``data.train`` or ``data.test``."""

    def __init__(self, data: DataConfig, split: Split) -> None:
        self.data = data
        self.split = split
        self.root = Path(data.root)
        self.paths = getattr(data, split)

    @property
    def folder(self) -> Path:
        """What file names of images are relative to; ``data.root`` unless overridden."""
        return self.root

    def prepare(self, progress: Count | None = None) -> None:
        """Makes sure that the data set is there; a format that can create it does so.

        Args:
            progress: called with the number of images written and of images in all.

        Raises:
            UserError: ``data.root`` does not exist.
        """
        if not self.root.is_dir():
            raise UserError(f"data.root: folder {self.root} does not exist; datasets/README.md says what goes where")

    @abstractmethod
    def read(self, labelled: bool = True) -> Records:
        """Reads images and objects.

        Args:
            labelled: whether missing annotations are an error. If not, as for images to test on, they are no objects.

        Raises:
            UserError: a file is missing or malformed; the message names the file and, for paths, the setting.
        """

    def index(
        self,
        empty_images: Literal["keep", "skip"] = "keep",
        bad_images: Literal["error", "skip"] = "error",
        labelled: bool = True,
    ) -> DatasetIndex:
        """Reads the images to load and their objects.

        Args:
            empty_images, bad_images: see ``dcn_det.data.index.build_index``.
            labelled: see :meth:`read`.

        Raises:
            UserError: see :meth:`read` and ``build_index``.
        """
        from dcn_det.data.index import build_index

        return build_index(self.read(labelled), self.folder, empty_images, bad_images)

    def ground_truth(self) -> Path | dict[str, Any]:
        """Returns COCO annotations to measure against: a file, or the content of one.

        Raises:
            UserError: see :meth:`read`.
        """
        return to_coco(self.read())

    def check(self, anchors: AnchorCheck | None, workers: int = 0, progress: Count | None = None) -> Report:
        """Checks every image and object; ``check_dataset`` prints the report.

        Args:
            anchors, workers, progress: see ``dcn_det.data.check.check_document``.

        Raises:
            UserError: the annotations cannot be read.
        """
        records = self.read(labelled=self.split == "train")
        document = to_coco(records)
        names = {row["id"]: row["file_name"] for row in document["images"]}
        counts: Counter[int] = Counter()
        for row in document["images"]:
            row["_where"] = row["file_name"]
        for row in document["annotations"]:
            counts[row["image_id"]] += 1
            row["_where"] = f"{names[row['image_id']]} object {counts[row['image_id']]}"
        report = Report(str(records.source))
        check_document(document, self.folder, report, anchors, workers, progress)
        return report

    def settings_of_fixed(self, path: Path) -> list[str]:
        """Returns ``key=value`` settings that use the annotations which ``check_dataset --fix`` wrote to ``path``."""
        images = os.path.relpath(self.folder, self.root)
        split = f"data.{self.split}"
        return ["data.kind=coco", f"{split}.images={images}", f"{split}.annotations={path.absolute()}"]
