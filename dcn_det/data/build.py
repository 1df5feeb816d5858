"""Builds data sets and loaders from settings."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal, Protocol, TypeVar

from torch import Tensor

from dcn_det.config.classifier import DigitsConfig, ImagesConfig
from dcn_det.config.data import DataConfig, LoadingConfig, ResizeConfig, SplitsConfig
from dcn_det.config.segmentation_data import MaskDataConfig
from dcn_det.data.augment import Augmentation, ColorJitter, RandomCrop
from dcn_det.data.cache import ImageCache
from dcn_det.data.dataset import DetectionDataset
from dcn_det.data.findings import first_few
from dcn_det.data.folders import FolderDataset, evaluation_transform, read_folders, training_transform
from dcn_det.data.formats import open_split
from dcn_det.data.formats.base import Split
from dcn_det.data.loader import Batched, Loader
from dcn_det.data.masks import open_masks
from dcn_det.data.masks.dataset import MaskDataset
from dcn_det.data.sample import holds_digits, make_digits
from dcn_det.data.sampler import EvalSampler, TrainSampler, repeat_factors
from dcn_det.errors import UserError
from dcn_det.progress import Count
from dcn_det.structures import AnyBatch

Flip = Literal["double", "random", "none"]
B = TypeVar("B", bound=AnyBatch, covariant=True)


def build_dataset(
    data: DataConfig,
    split: Split,
    resize: ResizeConfig | None = None,
    progress: Count | None = None,
    classes: Sequence[str] | None = None,
) -> DetectionDataset:
    """Opens one split of the data set in the settings; generates the sample set if it is absent.

    ``data.empty_images`` and ``data.bad_images`` apply to training only: a test split has all images, and none may be
    missing.

    Args:
        data: the settings.
        split: ``train`` examples include their objects, ``test`` examples do not.
        resize: used instead of ``data.resize``.
        progress: called with the number of images of the sample set written and their total number.
        classes: for a test split, the class names that the detector was trained on, by label; see ``match_classes``.

    Raises:
        UserError: see ``open_split`` and ``DataFormat.index``.
    """
    opened = open_split(data, split, progress)
    resize = resize or data.resize
    if split == "test":
        index = opened.index(labelled=False, classes=classes)
        return DetectionDataset(
            index,
            resize.short_side,
            resize.max_side,
            with_targets=False,
            max_pixels=data.max_pixels,
            exif=data.exif,
        )
    index = opened.index(data.empty_images, data.bad_images)
    augmentation = Augmentation(
        short_sides=data.short_sides,
        crop=RandomCrop(**data.crop.model_dump()),
        jitter=ColorJitter(**data.jitter.model_dump()),
    )
    return DetectionDataset(
        index,
        resize.short_side,
        resize.max_side,
        with_targets=True,
        augmentation=augmentation,
        cache=_cache(data),
        max_pixels=data.max_pixels,
        exif=data.exif,
    )


def _cache(data: DataConfig) -> ImageCache | None:
    if data.cache == "none":
        return None
    if data.cache == "ram":
        return ImageCache.in_memory()
    return ImageCache(Path(data.cache_folder) if data.cache_folder else Path(data.root) / ".cache")


def build_folders(
    data: ImagesConfig,
    split: Literal["train", "val"],
    classes: Sequence[str] | None = None,
    progress: Count | None = None,
) -> FolderDataset:
    """Opens one split of images in folders; generates the digits if they are absent.

    Args:
        data: the settings.
        split: ``train`` changes images at random.
        classes, progress: see ``read_folders`` and ``make_digits``.

    Raises:
        UserError: see ``read_folders``.
    """
    root, folder = Path(data.root), getattr(data, split)
    if isinstance(data, DigitsConfig) and not holds_digits(root):
        make_digits(root, progress=progress)
    if not root.is_dir():
        raise UserError(f"data.root: folder {root} does not exist; see datasets/README.md for the layout")
    index = read_folders(root / folder, f"data.{split}", classes)
    if split == "train":
        transform = training_transform(data.size, data.scale, data.ratio, data.flip == "random")
    else:
        transform = evaluation_transform(data.size, data.resize)
    return FolderDataset(index, transform, data.max_pixels, data.exif)


def build_masks(
    data: MaskDataConfig,
    split: Split,
    resize: ResizeConfig | None = None,
    progress: Count | None = None,
    classes: Sequence[str] | None = None,
) -> MaskDataset:
    """Opens one split of images with masks; generates the sample set if it is absent.

    Args:
        data: the settings.
        split: ``train`` examples have the labels of the network's input, ``test`` examples those of the original image.
        resize: used instead of ``data.resize``.
        progress: called with the number of images of the sample set written and their total number.
        classes: for a test split, the class names that the network was trained on, by label.

    Raises:
        UserError: see ``open_masks`` and ``MaskFormat.index``; the classes are others.
    """
    index = open_masks(data, split, progress).index()
    names = [category.name for category in index.categories]
    if classes is not None and names != list(classes):
        raise UserError(
            f"{index.source}: classes {first_few(names, 3)} are not those that the network was trained on: "
            f"{first_few(classes, 3)}"
        )
    resize = resize or data.resize
    training = split == "train"
    crop = data.crop if training else None
    sizes = resize.short_side, resize.max_side
    return MaskDataset(index, *sizes, training, crop, data.max_pixels, data.exif)


class TrainSet(Batched[B], Protocol[B]):
    """Training split of any task.

    Attributes:
        image_ids: int64 (N,).
        landscape: bool (N,), whether images are at least as wide as high.
    """

    @property
    def image_ids(self) -> Tensor: ...

    @property
    def landscape(self) -> Tensor: ...


def build_train_loader(
    dataset: TrainSet[B],
    data: LoadingConfig,
    batch_size: int,
    seed: int,
    world_size: int = 1,
    rank: int = 0,
    start_iteration: int = 0,
    pin_memory: bool = False,
    accumulate: int = 1,
) -> Loader[B]:
    """Returns an endless loader of this process's training batches from ``start_iteration`` on, for any task.

    Args:
        dataset: the training split.
        data: the settings.
        batch_size: images per batch.
        seed: seed of the run.
        world_size, rank: number of processes and index of this one.
        start_iteration: optimizer steps already taken.
        pin_memory: see ``Loader``.
        accumulate: batches of this process per optimizer step.
    """
    flip: Flip = "none"
    aspect_grouping = False
    repeats = None
    if isinstance(data, SplitsConfig):  # images in folders have one size, and their transform mirrors them
        flip, aspect_grouping = data.flip, data.aspect_grouping
    if isinstance(dataset, DetectionDataset) and isinstance(data, DataConfig) and data.repeat_threshold > 0:
        repeats = repeat_factors(*dataset.index.trained_labels(), data.repeat_threshold)
    sampler = TrainSampler(
        dataset.image_ids,
        dataset.landscape,
        batch_size,
        seed,
        flip=flip,
        aspect_grouping=aspect_grouping,
        world_size=world_size,
        rank=rank,
        start_iteration=start_iteration,
        accumulate=accumulate,
        repeats=repeats,
    )
    return Loader(dataset, sampler, data.workers, pin_memory, timeout=data.timeout)


class EvalSet(Batched[B], Protocol[B]):
    """Test split of any task."""

    def __len__(self) -> int: ...


def build_eval_loader(
    dataset: EvalSet[B],
    data: LoadingConfig,
    batch_size: int,
    world_size: int = 1,
    rank: int = 0,
    pin_memory: bool = False,
    views: Sequence[tuple[bool, tuple[int, int] | None]] = ((False, None),),
    done: Collection[int] = (),
) -> Loader[B]:
    """Returns the loader of this process for testing, for any task; all processes together load every image once in
    each view.

    Args:
        dataset: the test split.
        data: the settings.
        batch_size: images per batch.
        world_size, rank: number of processes and index of this one.
        pin_memory: see ``Loader``.
        views, done: see ``EvalSampler``.
    """
    sampler = EvalSampler(len(dataset), batch_size, world_size, rank, views, done)
    return Loader(dataset, sampler, data.workers, pin_memory, timeout=data.timeout)
