"""Images with masks, for semantic segmentation: Pascal VOC, Cityscapes, folders, the embedded sample set."""

from __future__ import annotations

from dcn_det.categories import Category
from dcn_det.config.registry import MASKS
from dcn_det.config.segmentation_data import MaskDataConfig
from dcn_det.data.masks.base import MaskFormat, Split
from dcn_det.errors import UserError
from dcn_det.progress import Count


def open_masks(data: MaskDataConfig, split: Split, progress: Count | None = None) -> MaskFormat:
    """Opens one split of the data set in the settings; generates the sample set if it is absent.

    Args:
        data: the settings.
        split: ``train`` or ``test``.
        progress: called with the number of images of the sample set written and their total number.

    Raises:
        UserError: the settings have no such split, or the data set is absent; see ``MaskFormat.prepare``.
    """
    if getattr(data, split) is None:
        raise UserError(f"data.{split}: is null; set the images and masks of this split")
    opened: MaskFormat = MASKS.builder(data.kind)(data, split)
    opened.prepare(progress)
    return opened


def mask_categories(data: MaskDataConfig) -> tuple[Category, ...]:
    """Returns the classes by label, without reading the data."""
    opened: MaskFormat = MASKS.builder(data.kind)(data, "train")
    return opened.categories
