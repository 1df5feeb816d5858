"""Data set of examples for the network, and batches of examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from dcn_det.data.augment import Augmentation, crop_boxes
from dcn_det.data.cache import ImageCache
from dcn_det.data.index import DatasetIndex
from dcn_det.data.sampler import Draw
from dcn_det.data.transforms import flip_boxes, flip_image, resize_short_side, scale_boxes
from dcn_det.errors import UserError
from dcn_det.exif import Exif
from dcn_det.images import MAX_PIXELS, Image, read_annotated
from dcn_det.structures import Batch, Category, ImageInfo, Target

Example = tuple[Tensor, ImageInfo, Target | None]
"""Pixels (uint8, (3, H, W), RGB), information about the image, and its objects (training only)."""


class DetectionDataset(Dataset[Example]):
    """Images and objects for the network: resized and, for training, optionally cropped, distorted and mirrored.

    Boxes are transformed like their image and, unlike in the authors' released code, not rounded to whole pixels.

    Args:
        index: the images and objects.
        short_side, max_side: sizes in pixels, see ``resized_size``.
        with_targets: whether examples include their objects.
        augmentation: random changes; None for none.
        cache: cache of decoded images; None for none.
        max_pixels: maximum number of pixels of an image, see ``read_image``.
        exif: orientation of the images, see :func:`dcn_det.images.read_annotated`.
    """

    def __init__(
        self,
        index: DatasetIndex,
        short_side: int,
        max_side: int,
        with_targets: bool,
        augmentation: Augmentation | None = None,
        cache: ImageCache | None = None,
        max_pixels: int = MAX_PIXELS,
        exif: Exif = "auto",
    ) -> None:
        self.index = index
        self.short_side = short_side
        self.max_side = max_side
        self.with_targets = with_targets
        self.augmentation = augmentation or Augmentation()
        self.cache = cache
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

    def __getitem__(self, draw: Draw) -> Example:
        """Loads an image and its objects.

        Raises:
            UserError: the file is missing or damaged, or its size differs from the annotation.
        """
        name = self.index.file_name(draw.image)
        height, width = size = self.index.size(draw.image)
        boxes, labels = self.index.objects(draw.image)
        plan = self.augmentation.plan(draw.seed, height, width, boxes)
        short_side, max_side = draw.resize or (plan.short_side or self.short_side, self.max_side)
        if plan.crop is None:
            image = self._cached(
                name,
                f"{short_side}-{max_side}",
                lambda: resize_short_side(self._read(name, size), short_side, max_side),
            )
        else:
            x1, y1, x2, y2 = plan.crop
            height, width = y2 - y1, x2 - x1
            whole = self._cached(name, "whole", lambda: self._read(name, size))
            image = resize_short_side(whole[y1:y2, x1:x2], short_side, max_side)
            boxes, labels = crop_boxes(boxes, plan.crop)[plan.kept], labels[plan.kept]
        image = self.augmentation.distort(image, plan)
        if draw.flipped:
            image = flip_image(image)
        info = ImageInfo(
            image_id=self.index.image_id(draw.image),
            file_name=name,
            height=height,
            width=width,
            input_height=image.shape[0],
            input_width=image.shape[1],
            flipped=draw.flipped,
            seed=draw.seed,
        )
        # A view: pixels are copied only once, into the batch.
        pixels = torch.from_numpy(image).permute(2, 0, 1)
        if not self.with_targets:
            return pixels, info, None
        boxes = scale_boxes(boxes, *info.scale)
        if draw.flipped:
            boxes = flip_boxes(boxes, info.input_width)
        return pixels, info, Target(torch.from_numpy(boxes), torch.from_numpy(labels))

    def batch(self, draws: Sequence[Draw]) -> Batch:
        """Loads the images of a batch; raises like indexing."""
        return collate([self[draw] for draw in draws])

    def image(self, i: int) -> Image:
        """Returns image ``i`` in its original size, in the orientation of its objects; raises like indexing."""
        return self._read(self.index.file_name(i), self.index.size(i))

    def _cached(self, name: str, form: str, make: Callable[[], Image]) -> Image:
        if self.cache is None:
            return make()
        if self.exif == "apply":  # the others read an image alike, or refuse it
            form += "-upright"
        return self.cache.get(self.index.folder / name, form, make)

    def _read(self, name: str, size: tuple[int, int]) -> Image:
        path, (height, width) = f"{self.index.folder}/{name}", size
        image = read_annotated(path, size, self.exif, self.max_pixels)
        if image.shape[:2] != size:
            raise UserError(
                f"image {path} is {image.shape[1]}x{image.shape[0]}, but {self.index.source} says {width}x{height}"
            )
        return image


def collate(examples: Sequence[Example]) -> Batch:
    """Combines images of different sizes into a batch.

    Args:
        examples: one or more examples, with targets in all or none of them.

    Returns:
        The batch. Images are uint8 (B, 3, H, W) in channels-last memory format, where H and W are the largest height
        and width; smaller images are padded with 0 at the right and bottom.
    """
    targets = [target for _, _, target in examples if target is not None]
    assert len(targets) in (0, len(examples))
    return Batch(pad_images([pixels for pixels, _, _ in examples]), [info for _, info, _ in examples], targets)


def pad_images(images: Sequence[Tensor]) -> Tensor:
    """Combines images, uint8 (3, H, W) of different sizes; see :func:`collate`."""
    if len(images) == 1:  # nothing to pad, nothing to copy
        return images[0][None]
    height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
    padded = torch.empty((len(images), 3, height, width), dtype=torch.uint8, memory_format=torch.channels_last)
    for place, image in zip(padded, images):
        place[:, : image.shape[1], : image.shape[2]] = image
        place[:, image.shape[1] :] = 0
        place[:, :, image.shape[2] :] = 0
    return padded
