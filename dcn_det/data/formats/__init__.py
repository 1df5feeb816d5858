"""Formats of annotated data: COCO, Pascal VOC, the embedded sample set, and those that other modules register."""

from __future__ import annotations

from dcn_det.config.data import DataConfig
from dcn_det.config.registry import FORMATS
from dcn_det.data.formats.base import DataFormat, Split
from dcn_det.errors import UserError
from dcn_det.progress import Count


def open_split(data: DataConfig, split: Split, progress: Count | None = None) -> DataFormat:
    """Opens one split of the data set in the settings; generates the sample set if it is absent.

    Args:
        data: the settings.
        split: ``train`` or ``test``.
        progress: called with the number of images of the sample set written and their total number.

    Raises:
        UserError: the settings have no such split, or the data set is absent; see ``DataFormat.prepare``.
    """
    if getattr(data, split) is None:
        raise UserError(f"data.{split}: is null; set the images and annotations of this split")
    opened: DataFormat = FORMATS.builder(data.kind)(data, split)
    opened.prepare(progress)
    return opened
