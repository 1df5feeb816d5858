"""Files of predicted labels: PNG files with a palette, evaluation of a folder of them, and submissions to servers."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dcn_det.config.segmentation_data import IGNORED, MaskDataConfig
from dcn_det.data.findings import first_few
from dcn_det.data.masks.base import MaskIndex
from dcn_det.data.masks.reading import Values, check_size, read_mask
from dcn_det.errors import UserError
from dcn_det.evaluation.segmentation import MaskEvaluator, MaskMetrics
from dcn_det.files import replacing
from dcn_det.images import MAX_PIXELS, header_size, index_png, voc_palette, write_indices
from dcn_det.progress import Count

VOC_FOLDER = "results/VOC2012/Segmentation/comp6_{}_cls"
"""Folder of results in Pascal VOC's submissions: competition 6 allows other training data, such as ImageNet."""


def palette(data: MaskDataConfig | None) -> NDArray[np.uint8]:
    """Returns the colors of the classes, uint8 (256, 3) RGB: those of the settings, the others those of Pascal VOC."""
    colors = voc_palette()
    if data is not None and data.colors:
        colors[: len(data.colors)] = data.colors
    return colors


def prediction_path(folder: Path, name: str) -> Path:
    """Returns where the prediction for an image is: ``name`` is that of ``MaskIndex.name``."""
    return folder / f"{name}.png"


def write_prediction(folder: Path, name: str, labels: NDArray[np.uint8], data: MaskDataConfig | None = None) -> Path:
    """Writes the predicted classes of an image as a PNG file with a palette, atomically.

    Args:
        folder: of the predictions.
        name: of the image, see ``MaskIndex.name``; its folders are created.
        labels: uint8 (H, W).
        data: settings with the colors of the classes; None for those of Pascal VOC.

    Returns:
        The file's path.

    Raises:
        OSError: the file cannot be written.
    """
    path = prediction_path(folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_indices(path, labels, palette(data))
    return path


def read_prediction(path: Path, classes: int, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Reads the predicted classes of an image.

    Args:
        path: a PNG file, as :func:`write_prediction` writes it.
        classes: number of classes.
        max_pixels: see ``read_mask``.

    Returns:
        uint8 (H, W), labels below ``classes``.

    Raises:
        MaskProblem: the file is missing, damaged or not a mask, or a value is not a class.
    """
    return Values(range(classes), ()).labels(read_mask(path, max_pixels), str(path))


def evaluate_folder(folder: Path, index: MaskIndex, data: MaskDataConfig, progress: Count | None = None) -> MaskMetrics:
    """Compares a folder of predictions with the ground truth of a split.

    Predictions may have the size of the network's input, for which ``mIoU`` is that of the authors' released code, or
    of the image.

    Args:
        folder: has a file for each image, see :func:`prediction_path`.
        index: the split; its images have masks.
        data: the settings.
        progress: called with the number of images compared and their total number.

    Raises:
        UserError: a prediction is missing or cannot be used, or the split has no masks.
    """
    if not index.annotated:
        raise UserError(f"{index.source}: no masks to compare with")
    _require(folder, index)
    evaluator = MaskEvaluator(index.categories, data.compare_at)
    for i in range(len(index)):
        mask = f"{index.root}/{index.mask_name(i)}"
        truth = index.values.labels(read_mask(mask, data.max_pixels), mask)
        predicted = read_prediction(prediction_path(folder, index.name(i)), len(index.categories), data.max_pixels)
        evaluator.add(int(index.image_ids[i]), torch.from_numpy(predicted), torch.from_numpy(truth))
        if progress is not None:
            progress(i + 1, len(index))
    return evaluator.metrics()


def write_voc_submission(predictions: Path, target: Path, index: MaskIndex, split: str = "test") -> Path:
    """Packs predictions for the server of Pascal VOC, atomically.

    Args:
        predictions: folder of predictions with the sizes of the images.
        target: archive to write, ``.tgz``; its files are ``results/VOC2012/Segmentation/comp6_<split>_cls/*.png``.
        index: the images tested.
        split: ``test``, or ``val`` for the evaluation of the development kit.

    Returns:
        ``target``.

    Raises:
        UserError: a prediction is missing or cannot be used.
        OSError: the archive cannot be written.
    """
    _require(predictions, index)
    with replacing(target) as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, labels in _whole(predictions, index):
            content = index_png(labels, voc_palette())
            entry = tarfile.TarInfo(f"{VOC_FOLDER.format(split)}/{name}.png")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return target


def write_cityscapes_submission(predictions: Path, target: Path, index: MaskIndex) -> Path:
    """Packs predictions for the server of Cityscapes, atomically.

    Args:
        predictions: folder of predictions with the sizes of the images.
        target: archive to write, ``.zip``; its files are ``<city>_<sequence>_<frame>_labelIds.png``, 8-bit gray, with
            label ids instead of the 19 labels used in training.
        index: the images tested.

    Returns:
        ``target``.

    Raises:
        UserError: a prediction is missing or cannot be used.
        OSError: the archive cannot be written.
    """
    _require(predictions, index)
    ids = label_ids(index)
    with replacing(target) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, labels in _whole(predictions, index):
            # A fixed date, so that the same predictions give the same archive.
            archive.writestr(zipfile.ZipInfo(f"{name}_labelIds.png"), index_png(ids[labels]))
    return target


def label_ids(index: MaskIndex) -> NDArray[np.uint8]:
    """Returns the value in the files of the data set for each label, uint8 (256,); 255 for other labels."""
    ids = np.full(256, IGNORED, dtype=np.uint8)
    ids[: len(index.categories)] = [category.id for category in index.categories]
    return ids


def _require(folder: Path, index: MaskIndex) -> None:
    names = [index.name(i) for i in range(len(index))]
    missing = [name for name in names if not prediction_path(folder, name).is_file()]
    if missing:
        raise UserError(
            f"{folder}: {len(missing)} of {len(names)} predictions are missing: "
            f"{first_few([f'{name}.png' for name in missing], 3)}"
        )


def _whole(folder: Path, index: MaskIndex) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Yields names and predicted labels of all images, which must have the sizes of the images."""
    for i in range(len(index)):
        name = index.name(i)
        path = prediction_path(folder, name)
        labels = read_prediction(path, len(index.categories))
        size = header_size(index.root / index.file_name(i))
        if size is None:
            raise UserError(f"cannot read image {index.root / index.file_name(i)}")
        check_size(labels, size, str(path))
        yield name, labels
