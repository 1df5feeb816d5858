"""Interface of data formats: one split of a data set, for training, evaluation and checks."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dcn_det.config.data import DataConfig
from dcn_det.data.findings import Findings
from dcn_det.data.records import Records, match_classes
from dcn_det.data.subset import subset
from dcn_det.errors import UserError
from dcn_det.progress import Count

if TYPE_CHECKING:
    from dcn_det.data.index import DatasetIndex

Split = Literal["train", "test"]


class DataFormat(ABC):
    """One split of a data set.

    A format implements :meth:`read`; the other methods use its records. Modules of formats must not import torch, so
    that evaluation runs without it.

    Args:
        data: the settings.
        split: ``train`` or ``test``; this section of ``data`` is not null.
    """

    paths: Any
    """Settings of the split: the section ``data.train`` or ``data.test``."""

    def __init__(self, data: DataConfig, split: Split) -> None:
        self.data = data
        self.split = split
        self.root = Path(data.root)
        self.paths = getattr(data, split)

    @property
    def folder(self) -> Path:
        """Folder of the images, to which file names are relative; ``data.root`` unless overridden."""
        return self.root

    @property
    def folders(self) -> Sequence[Path]:
        """Folders that must exist; :attr:`folder` unless overridden."""
        return [self.folder]

    def prepare(self, progress: Count | None = None) -> None:
        """Checks that the data set exists; creates it if the format can.

        Args:
            progress: called with the number of images written and their total number.

        Raises:
            UserError: ``data.root`` does not exist.
        """
        if not self.root.is_dir():
            raise UserError(f"data.root: folder {self.root} does not exist; see datasets/README.md for the layout")

    @property
    def folder_setting(self) -> str:
        """Name of the setting that determines :attr:`folder`, for messages."""
        return "data.root"

    @property
    def source(self) -> str | Path:
        """Files or folder of the annotations, for messages; ``data.root`` unless overridden."""
        return self.root

    @abstractmethod
    def read(self, findings: Findings, labelled: bool = True) -> Records:
        """Reads images and objects.

        Args:
            findings: receives the problems of images and objects that cannot be used. They are left out;
                :func:`dcn_det.data.rules.screen` applies the rules that all formats share.
            labelled: whether missing annotations are an error. If not, as for testing, images may have no annotations.

        Raises:
            UserError: a file is missing or malformed; the message gives the file and, for paths, the setting.
        """

    def repaired(self, findings: Findings, labelled: bool = True) -> Records:
        """Reads images and objects and repairs values where possible, for ``dcn-det check-dataset --fix``.

        Args:
            findings, labelled: see :meth:`read`.
        """
        return self.read(findings, labelled)

    def records(self, labelled: bool = True) -> Records:
        """Reads images and objects, checks that all can be used, and selects those of ``part`` and ``data.fraction``.

        Raises:
            UserError: see :meth:`read`; an image or object cannot be used, or no image is selected.
        """
        findings = Findings(self.source)
        records = self.read(findings, labelled)
        findings.refuse()
        return subset(records, self.paths.part, self.data.fraction, self.data.part_seed, f"data.{self.split}.part")

    def index(
        self,
        empty_images: Literal["keep", "skip"] = "keep",
        bad_images: Literal["error", "skip"] = "error",
        labelled: bool = True,
        classes: Sequence[str] | None = None,
    ) -> DatasetIndex:
        """Reads images and objects into an index.

        Args:
            empty_images, bad_images: see ``dcn_det.data.index.build_index``.
            labelled: see :meth:`read`.
            classes: class names that a detector was trained on, by label; None uses those of the annotations.

        Raises:
            UserError: see :meth:`records`, ``match_classes`` and ``build_index``.
        """
        from dcn_det.data.index import build_index

        for folder in self.folders:
            if not folder.is_dir():
                raise UserError(f"{self.folder_setting}: no folder {folder} (data.root is {self.root})")
        records = self.records(labelled)
        if classes is not None:
            records = match_classes(records, classes, "the training set or the checkpoint")
        return build_index(records, self.folder, empty_images, bad_images, self.data.max_pixels)

    def settings_of_fixed(self, path: Path) -> list[str]:
        """Returns ``key=value`` settings to use the annotations that ``dcn-det check-dataset --fix`` wrote."""
        images = os.path.relpath(self.folder, self.root)
        split = f"data.{self.split}"
        return ["data.kind=coco", f"{split}.images={images}", f"{split}.annotations={path.absolute()}"]
