"""Turns draws into batches, in this process or in workers."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from dcn_det.data.index import DatasetIndex
from dcn_det.data.sampler import Draw
from dcn_det.data.transforms import flip_boxes, flip_image, read_image, resize_short_side, scale_boxes
from dcn_det.errors import UserError
from dcn_det.structures import Batch, Category, ImageInfo, Target

Example = tuple[Tensor, ImageInfo, Target | None]
"""Pixels (uint8, (3, H, W), RGB), where they come from, and their objects when training."""


class DetectionDataset(Dataset[Example]):
    """Images and objects as the network takes them: resized, perhaps mirrored.

    Boxes follow their image exactly; unlike in the authors' code they are not rounded to whole pixels.

    Args:
        index: the images.
        short_side, max_side: see ``resized_size``, pixels.
        with_targets: whether examples carry their objects.
    """

    def __init__(self, index: DatasetIndex, short_side: int, max_side: int, with_targets: bool) -> None:
        self.index = index
        self.short_side = short_side
        self.max_side = max_side
        self.with_targets = with_targets

    @property
    def categories(self) -> tuple[Category, ...]:
        return self.index.categories

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, draw: Draw) -> Example:
        """Loads one image.

        Raises:
            UserError: the file is missing or damaged, or has not the size its annotation says.
        """
        name = self.index.file_name(draw.image)
        height, width = self.index.size(draw.image)
        path = self.index.folder / name
        image = read_image(path)
        if image.shape[:2] != (height, width):
            raise UserError(
                f"image {path} is {image.shape[1]}x{image.shape[0]}, but {self.index.source} says {width}x{height}"
            )
        image = resize_short_side(image, *(draw.resize or (self.short_side, self.max_side)))
        info = ImageInfo(
            image_id=int(self.index.image_ids[draw.image]),
            file_name=name,
            height=height,
            width=width,
            input_height=image.shape[0],
            input_width=image.shape[1],
            flipped=draw.flipped,
            seed=draw.seed,
        )
        if draw.flipped:
            image = flip_image(image)
        pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        return pixels, info, self._target(draw, info) if self.with_targets else None

    def _target(self, draw: Draw, info: ImageInfo) -> Target:
        boxes, labels = self.index.targets(draw.image)
        boxes = scale_boxes(boxes, *info.scale)
        if draw.flipped:
            boxes = flip_boxes(boxes, info.input_width)
        return Target(boxes, labels)


def collate(examples: Sequence[Example]) -> Batch:
    """Puts images of different sizes into one batch.

    Args:
        examples: at least one; all with a target or none.

    Returns:
        Images in the top-left corner of a uint8 (B, 3, H, W) as high and wide as the largest, padded with 0.
    """
    height = max(pixels.shape[1] for pixels, _, _ in examples)
    width = max(pixels.shape[2] for pixels, _, _ in examples)
    images = torch.zeros((len(examples), 3, height, width), dtype=torch.uint8)
    for image, (pixels, _, _) in zip(images, examples):
        image[:, : pixels.shape[1], : pixels.shape[2]] = pixels
    targets = [target for _, _, target in examples if target is not None]
    assert len(targets) in (0, len(examples))
    return Batch(images, [info for _, info, _ in examples], targets)


class Loader:
    """Batches of a data set in the sampler's order, whatever the number of workers.

    Args:
        dataset: the images.
        sampler: yields the draws of one batch at a time; may be endless.
        workers: processes that load ahead; they stay between iterations. 0 loads in this one.
        pin_memory: whether batches are in page-locked memory, for asynchronous copies to CUDA.
        start_method: how workers start: ``fork``, ``spawn``, ``forkserver``, or None for Python's default.
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        sampler: Sampler[list[Draw]],
        workers: int = 0,
        pin_memory: bool = False,
        start_method: str | None = None,
    ) -> None:
        self.dataset = dataset
        self.sampler = sampler
        self._batches: DataLoader[Batch | UserError] = DataLoader(
            _Batches(dataset),
            batch_size=None,
            sampler=sampler,
            num_workers=workers,
            collate_fn=_unchanged,
            pin_memory=pin_memory,
            worker_init_fn=_start_worker,
            persistent_workers=workers > 0,
            multiprocessing_context=start_method if workers > 0 else None,
            # Without one, the loader would draw from, and so move, the global generator.
            generator=torch.Generator().manual_seed(0),
        )

    def __iter__(self) -> Iterator[Batch]:
        """Yields batches.

        Raises:
            UserError: an image cannot be used; the same one-line message wherever it was loaded.
        """
        for batch in self._batches:
            if isinstance(batch, UserError):
                raise batch
            yield batch


class _Batches(Dataset["Batch | UserError"]):
    """Loads whole batches. User errors travel as values: torch would add a traceback to their message."""

    def __init__(self, dataset: DetectionDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, draws: list[Draw]) -> Batch | UserError:
        try:
            return collate([self.dataset[draw] for draw in draws])
        except UserError as error:
            return error


def _unchanged(batch: Any) -> Any:
    return batch


def _start_worker(worker: int) -> None:
    # A signal meant for the run reaches the whole process group; the main process decides what to do about it, and
    # needs its workers for that. They end when it does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # Every worker using every core slows all of them down.
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
