"""What a data format offers: one split of a data set, as records, to train on, to measure against and to check."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dcn_det.config.data import DataConfig
from dcn_det.data.findings import Findings
from dcn_det.data.records import Records, match_classes
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

    @property
    def folder_setting(self) -> str:
        """The setting that gives :attr:`folder`, for messages."""
        return "data.root"

    @property
    def source(self) -> Path:
        """What messages call the annotations; ``data.root`` unless overridden."""
        return self.root

    @abstractmethod
    def read(self, findings: Findings, labelled: bool = True) -> Records:
        """Reads images and objects.

        Args:
            findings: receives what cannot be used, which is left out; :func:`dcn_det.data.rules.screen` applies the
                rules that all formats share.
            labelled: whether missing annotations are an error. If not, as for images to test on, there are no objects.

        Raises:
            UserError: a file is missing or malformed; the message names the file and, for paths, the setting.
        """

    def repaired(self, findings: Findings, labelled: bool = True) -> Records:
        """Reads images and objects, with values repaired where possible, for ``dcn-det check-dataset --fix``.

        Args:
            findings, labelled: see :meth:`read`.
        """
        return self.read(findings, labelled)

    def records(self, labelled: bool = True) -> Records:
        """Reads images and objects, all of which can be used.

        Raises:
            UserError: see :meth:`read`; or something cannot be used.
        """
        findings = Findings(self.source)
        records = self.read(findings, labelled)
        findings.refuse()
        return records

    def index(
        self,
        empty_images: Literal["keep", "skip"] = "keep",
        bad_images: Literal["error", "skip"] = "error",
        labelled: bool = True,
        classes: Sequence[str] | None = None,
    ) -> DatasetIndex:
        """Reads the images to load and their objects.

        Args:
            empty_images, bad_images: see ``dcn_det.data.index.build_index``.
            labelled: see :meth:`read`.
            classes: names by label that a detector was trained on; None takes those of the annotations.

        Raises:
            UserError: see :meth:`records`, ``match_classes`` and ``build_index``.
        """
        from dcn_det.data.index import build_index

        if not self.folder.is_dir():
            raise UserError(f"{self.folder_setting}: no folder {self.folder} (data.root is {self.root})")
        records = self.records(labelled)
        if classes is not None:
            records = match_classes(records, classes, "the training set or the checkpoint")
        return build_index(records, self.folder, empty_images, bad_images, self.data.max_pixels)

    def settings_of_fixed(self, path: Path) -> list[str]:
        """Returns ``key=value`` settings that use the annotations which ``check_dataset --fix`` wrote to ``path``."""
        images = os.path.relpath(self.folder, self.root)
        split = f"data.{self.split}"
        return ["data.kind=coco", f"{split}.images={images}", f"{split}.annotations={path.absolute()}"]
