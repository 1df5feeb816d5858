"""Data set of images and masks for the network, and batches of them."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dcn_det.categories import Category
from dcn_det.config.segmentation_data import IGNORED
from dcn_det.data.dataset import pad_images
from dcn_det.data.masks.base import MaskIndex
from dcn_det.data.masks.reading import Mask, read_pair
from dcn_det.data.sampler import Draw
from dcn_det.data.transforms import flip_image, resize_short_side
from dcn_det.exif import Exif
from dcn_det.images import MAX_PIXELS, Image, read_annotated
from dcn_det.structures import ImageInfo, MaskBatch

MaskExample = tuple[Tensor, ImageInfo, Tensor | None]
"""Pixels (uint8, (3, H, W), RGB), information about the image, and labels (uint8), see :class:`MaskDataset`."""

_CROP = 0xC409


class MaskDataset(Dataset[MaskExample]):
    """Images and masks for the network: resized, mirrored and, for training, optionally cropped at random.

    Masks are resized to the nearest pixel. Labels are those of the network's input in training and of the original
    image in testing.

    Args:
        index: the images and masks.
        short_side, max_side: sizes in pixels, see ``resized_size``.
        training: whether examples have labels of the input; if not, of the original image, if it has a mask.
        crop: height and width of a random part of the resized image to train on, in pixels; None for the whole image.
        max_pixels: maximum number of pixels of an image, see ``read_image``.
        exif: orientation of the images, see :func:`dcn_det.images.read_annotated`.
    """

    def __init__(
        self,
        index: MaskIndex,
        short_side: int,
        max_side: int,
        training: bool,
        crop: tuple[int, int] | None = None,
        max_pixels: int = MAX_PIXELS,
        exif: Exif = "auto",
    ) -> None:
        assert index.annotated or not training
        self.index = index
        self.short_side = short_side
        self.max_side = max_side
        self.training = training
        self.crop = crop
        self.max_pixels = max_pixels
        self.exif: Exif = exif

    @property
    def categories(self) -> tuple[Category, ...]:
        return self.index.categories

    @property
    def image_ids(self) -> Tensor:
        """int64 (N,)."""
        return self.index.image_ids

    @property
    def landscape(self) -> Tensor:
        """bool (N,), whether images are at least as wide as high."""
        return self.index.landscape

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, draw: Draw) -> MaskExample:
        """Loads an image and its labels.

        Raises:
            UserError: the image or the mask is missing or damaged, or they do not fit.
        """
        image, mask = self.read(draw.image)
        height, width = image.shape[:2]
        image = resize_short_side(image, *(draw.resize or (self.short_side, self.max_side)))
        if self.training:
            assert mask is not None
            size = (image.shape[1], image.shape[0])
            mask = np.asarray(cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST), dtype=np.uint8)
            top, left, bottom, right = self._part(image, draw.seed)
            image, mask = image[top:bottom, left:right], mask[top:bottom, left:right]
        image = np.ascontiguousarray(image)
        if draw.flipped:
            image = flip_image(image)
            if self.training and mask is not None:
                mask = np.ascontiguousarray(mask[:, ::-1])
        info = ImageInfo(
            image_id=int(self.index.image_ids[draw.image]),
            file_name=self.index.file_name(draw.image),
            height=height,
            width=width,
            input_height=image.shape[0],
            input_width=image.shape[1],
            flipped=draw.flipped,
            seed=draw.seed,
        )
        labels = None if mask is None else torch.from_numpy(mask)
        return torch.from_numpy(image).permute(2, 0, 1), info, labels

    def read(self, i: int) -> tuple[Image, Mask | None]:
        """Returns image ``i`` and the class of each of its pixels as they are stored; raises like indexing."""
        image = f"{self.index.root}/{self.index.file_name(i)}"
        if not self.index.annotated:
            return read_annotated(image, None, self.exif, self.max_pixels), None
        mask = f"{self.index.root}/{self.index.mask_name(i)}"
        return read_pair(image, mask, self.index.values, self.max_pixels, self.exif)

    def _part(self, image: Image, seed: int) -> tuple[int, int, int, int]:
        """Returns the part of an image to train on: top, left, bottom, right, half-open."""
        height, width = image.shape[:2]
        if self.crop is None:
            return 0, 0, height, width
        rows, columns = min(self.crop[0], height), min(self.crop[1], width)
        rng = np.random.default_rng([seed, _CROP])
        top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
        return top, left, top + rows, left + columns

    def batch(self, draws: Sequence[Draw]) -> MaskBatch:
        """Loads the images of a batch; raises like indexing."""
        examples = [self[draw] for draw in draws]
        images, infos = pad_images([pixels for pixels, _, _ in examples]), [info for _, info, _ in examples]
        masks = [labels for _, _, labels in examples if labels is not None]
        if not self.training:
            return MaskBatch(images, infos, truths=masks)
        labels = torch.full((len(masks), *images.shape[2:]), IGNORED, dtype=torch.uint8)
        for padded, mask in zip(labels, masks):
            padded[: mask.shape[0], : mask.shape[1]] = mask
        return MaskBatch(images, infos, labels)
