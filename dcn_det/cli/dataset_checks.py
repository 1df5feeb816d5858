"""Checks of data sets for ``dcn-det check-dataset``, one for the data of each task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from dcn_det.config import Config, RunConfig
from dcn_det.config.registry import resolve
from dcn_det.config.segmentation_data import MaskDataConfig
from dcn_det.data.anchor_check import AnchorCheck
from dcn_det.data.build import build_dataset, build_masks
from dcn_det.data.check import Report, check_split, fixed_document
from dcn_det.data.dataset import DetectionDataset
from dcn_det.data.formats import open_split
from dcn_det.data.masks import open_masks
from dcn_det.data.masks.check import MaskReport, check_masks
from dcn_det.data.sampler import Draw, mix, permutation
from dcn_det.errors import UserError
from dcn_det.evaluation.segmentation_files import palette
from dcn_det.files import write_json
from dcn_det.images import Image, draw_boxes, sheet, write_image
from dcn_det.models.anchor_head import AnchorHead
from dcn_det.models.build import build_detector
from dcn_det.progress import Count, Progress
from dcn_det.visualize.masks import draw_masks

AUGMENTED = 3
"""Augmented versions to draw of each image."""


class Checked(Protocol):
    """Result of a check."""

    @property
    def good(self) -> bool:
        """Whether training and evaluation can use all images."""

    def text(self) -> str:
        """Returns the report as text."""


class DatasetCheck(ABC):
    """Check of one split of a data set.

    Args:
        config: the settings.
        split: ``train`` or ``test``.

    Raises:
        UserError: the split does not exist.
    """

    def __init__(self, config: Any, split: Literal["train", "test"]) -> None:
        self.config = config

    @abstractmethod
    def report(self, workers: int, progress: Count | None = None) -> Checked:
        """Reads every image and annotation.

        Args:
            workers: processes that decode images; 0 decodes in this process.
            progress: called with the number of images read and their total number.
        """

    @abstractmethod
    def pictures(self, count: int) -> Iterator[tuple[str, list[Image]]]:
        """Yields names of training images and, for each, pictures of it unchanged and as used in training."""

    def browse(self, folder: Path, count: int) -> int:
        """Draws training images, unchanged and augmented; returns the number of images."""
        folder.mkdir(parents=True, exist_ok=True)
        number = 0
        for name, pictures in self.pictures(count):
            write_image(folder / f"{name}.jpg", sheet(pictures, 2))
            number += 1
        return number

    def draws(self, ids: np.ndarray, count: int) -> Iterator[tuple[int, list[Draw]]]:
        """Yields positions of images in a random order, and the draws of their augmented versions."""
        config = self.config
        for i in permutation(len(ids), config.seed)[:count].tolist():
            flips = [config.data.flip != "none" and epoch % 2 == 1 for epoch in range(AUGMENTED)]
            yield i, [Draw(i, flip, mix(config.seed, epoch, int(ids[i]))) for epoch, flip in enumerate(flips)]


class FixableCheck(DatasetCheck):
    """Check that can write the usable part of a split."""

    @abstractmethod
    def fix(self, path: Path) -> tuple[str, str]:
        """Writes the usable part of the split after :meth:`report`; returns what was written and how to use it."""


def open_check(config: RunConfig, split: Literal["train", "test"]) -> DatasetCheck:
    """Opens a split with the check that its settings name.

    Raises:
        UserError: the data has no check, or the split does not exist.
    """
    if config.data.check is None:
        raise UserError(f"check-dataset does not check this kind of data: {type(config.data).__name__}")
    opened: DatasetCheck = resolve(config.data.check)(config, split)
    return opened


class DetectionCheck(FixableCheck):
    """Check of images with boxes."""

    def __init__(self, config: Config, split: Literal["train", "test"]) -> None:
        super().__init__(config, split)
        self.split = open_split(config.data, split, Progress("sample image"))

    def report(self, workers: int, progress: Count | None = None) -> Report:
        self.result = check_split(self.split, self._anchors(), workers, progress)
        return self.result

    def _anchors(self) -> AnchorCheck | None:
        rpn = getattr(build_detector(self.config, 1), "rpn", None)
        if not isinstance(rpn, AnchorHead):
            return None
        resize = self.config.data.resize
        return AnchorCheck(rpn.anchors.double().numpy(), rpn.strides, resize.short_side, resize.max_side)

    def fix(self, path: Path) -> tuple[str, str]:
        fixed = fixed_document(self.split, self.result)
        write_json(path, fixed)
        images, objects = len(fixed["images"]), len(fixed["annotations"])
        total = f"{images} of {self.result.images} images, {objects} of {self.result.objects} objects"
        return f"'{path}' with {total}", f"to use it: {' '.join(self.split.settings_of_fixed(path))}"

    def pictures(self, count: int) -> Iterator[tuple[str, list[Image]]]:
        dataset = build_dataset(self.config.data, "train")
        names = [category.name for category in dataset.categories]
        for i, draws in self.draws(dataset.index.image_ids.numpy(), count):
            pictures = [self._before(dataset, i, names)]
            for draw in draws:
                pixels, _, target = dataset[draw]
                assert target is not None
                image = pixels.permute(1, 2, 0).numpy()
                pictures.append(draw_boxes(image, target.boxes.numpy(), target.labels.tolist(), names))
            yield Path(dataset.index.file_name(i)).stem, pictures

    @staticmethod
    def _before(dataset: DetectionDataset, i: int, names: list[str]) -> Image:
        image = dataset.image(i)
        boxes, labels = dataset.index.objects(i)
        return draw_boxes(image, boxes, labels.tolist(), names)


class MaskCheck(DatasetCheck):
    """Check of images with masks."""

    def __init__(self, config: RunConfig, split: Literal["train", "test"]) -> None:
        super().__init__(config, split)
        assert isinstance(config.data, MaskDataConfig)
        self.split = open_masks(config.data, split, Progress("sample image"))

    def report(self, workers: int, progress: Count | None = None) -> MaskReport:
        return check_masks(self.split, workers, progress)

    def pictures(self, count: int) -> Iterator[tuple[str, list[Image]]]:
        data = self.config.data
        dataset = build_masks(data, "train")
        colors = palette(data)
        for i, draws in self.draws(dataset.image_ids.numpy(), count):
            image, mask = dataset.read(i)
            assert mask is not None
            pictures = [draw_masks(image, mask, dataset.categories, colors)]
            for draw in draws:
                pixels, _, labels = dataset[draw]
                assert labels is not None
                changed = pixels.permute(1, 2, 0).contiguous().numpy()
                pictures.append(draw_masks(changed, labels.numpy(), dataset.categories, colors))
            yield Path(dataset.index.name(i)).name, pictures
