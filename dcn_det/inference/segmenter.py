"""Semantic segmentation of images with a trained network."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from dcn_det.categories import Category
from dcn_det.config.segmentation import SegmentationConfig
from dcn_det.config.segmentation_data import IGNORED
from dcn_det.data.transforms import resize_short_side
from dcn_det.evaluation.segmentation_files import palette
from dcn_det.images import Image
from dcn_det.inference.sources import apply
from dcn_det.models.deeplab import DeepLab
from dcn_det.models.folded import Folding
from dcn_det.precision import PRECISIONS, autocast
from dcn_det.structures import ImageInfo, MaskBatch


@dataclass(frozen=True, slots=True)
class LabelMap:
    """Classes of the pixels of an image.

    Attributes:
        labels: uint8 (height, width), indices into ``categories``; 255: undecided, see :meth:`above`.
        scores: float32 (height, width), probability of the label.
        categories: classes by label.
        palette: colors of the labels in pictures and files, uint8 (256, 3) RGB.
    """

    labels: np.ndarray
    scores: np.ndarray
    categories: tuple[Category, ...]
    palette: np.ndarray

    def above(self, score: float) -> LabelMap:
        """Returns the same labels, undecided where the probability is not above ``score``."""
        labels = np.where(self.scores > score, self.labels, np.uint8(IGNORED))
        return replace(self, labels=labels)

    def shares(self) -> dict[str, float]:
        """Returns the share of the pixels that have each class, by name; classes without pixels are left out."""
        counts = np.bincount(self.labels.ravel(), minlength=256)[: len(self.categories)]
        return {
            category.name: float(count / self.labels.size) for category, count in zip(self.categories, counts) if count
        }


class Segmenter:
    """Runs a segmentation network on images.

    The labels are those of the network's input, resized to the image by taking the nearest pixel.

    Args:
        model: the network.
        categories: classes by label.
        palette: colors of the labels, uint8 (256, 3) RGB.
        short_side, max_side: size of the input, see :func:`dcn_det.data.transforms.resized_size`; pixels.
        device: device of the model.
        precision: dtype of autocast; float32 disables it.
        fold: whether to run the network in its folded form, see :mod:`dcn_det.models.folded`.
    """

    def __init__(
        self,
        model: DeepLab,
        categories: tuple[Category, ...],
        palette: np.ndarray,
        short_side: int,
        max_side: int,
        device: torch.device,
        precision: torch.dtype = torch.float32,
        fold: bool = False,
    ) -> None:
        self.model = model
        self.categories = categories
        self.palette = palette
        self.short_side, self.max_side = short_side, max_side
        self.device = device
        self.precision = precision
        self._folding = Folding(model, precision) if fold else None

    @property
    def names(self) -> list[str]:
        return [category.name for category in self.categories]

    def __call__(self, images: Any, *, recursive: bool = False, every: int = 1) -> Any:
        """Classifies the pixels of an image, or of each of many images.

        Args:
            images, recursive, every: see :meth:`dcn_det.inference.predictor.Predictor.__call__`.

        Returns:
            A :class:`LabelMap`; an iterator over them, or a list of them, as for detections.
        """
        return apply(self._segment, images, recursive, every)

    def _segment(self, image: Image) -> LabelMap:
        resized = resize_short_side(image, self.short_side, self.max_side)
        info = ImageInfo(0, "", *image.shape[:2], *resized.shape[:2])
        pixels = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))
        ((labels, scores),) = self.predict(MaskBatch(pixels[None], [info]))
        size = (info.width, info.height)
        nearest, smooth = (
            cv2.resize(each.cpu().numpy(), size, interpolation=how)
            for each, how in ((labels, cv2.INTER_NEAREST), (scores, cv2.INTER_LINEAR))
        )
        return LabelMap(np.asarray(nearest, np.uint8), np.asarray(smooth, np.float32), self.categories, self.palette)

    def scores(self, batch: MaskBatch) -> Tensor:
        """Returns the scores of the cells of a batch of images, see :meth:`dcn_det.models.deeplab.DeepLab.scores`."""
        return self._run(batch)[1]

    def predict(self, batch: MaskBatch) -> list[tuple[Tensor, Tensor]]:
        """Returns the labels of a batch of images and their probabilities, see :meth:`DeepLab.labels`."""
        model, scores = self._run(batch)
        with torch.inference_mode():
            return model.best(scores, batch.infos)

    def _run(self, batch: MaskBatch) -> tuple[DeepLab, Tensor]:
        training = self.model.training
        if training:
            self.model.train(False)
        model: Any = self.model if self._folding is None else self._folding.current()
        try:
            with torch.inference_mode(), autocast(self.device, self.precision):
                return model, model.scores(batch.to(self.device, non_blocking=True))
        finally:
            if training:
                self.model.train()

    def stream(self, batches: Iterable[MaskBatch]) -> Iterator[tuple[ImageInfo, Tensor, Tensor | None]]:
        """Yields information about every image, its labels at the size of the input, and its ground truth if given."""
        for batch in batches:
            found = self.predict(batch)
            truths: list[Tensor | None] = [*batch.truths] or [None] * len(batch)
            yield from zip(batch.infos, (labels for labels, _ in found), truths)


def segmenter_of(model: DeepLab, categories: tuple[Category, ...], config: SegmentationConfig) -> Segmenter:
    """Builds a segmenter with the test settings of a config; it uses the device of the model."""
    test, size = config.test, config.test.resize or config.data.resize
    device = next(model.parameters()).device
    if test.precision == "float16" and device.type == "cpu":
        warnings.warn("test.precision: float16 is very slow on a CPU; use bfloat16", stacklevel=2)
    return Segmenter(
        model,
        categories,
        palette(config.data),
        size.short_side,
        size.max_side,
        device,
        PRECISIONS[test.precision],
        fold=test.fold,
    )
