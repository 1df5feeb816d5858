"""Metrics of semantic segmentation, from confusion matrices accumulated on the device of the predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dcn_det.categories import Category
from dcn_det.config.segmentation_data import IGNORED, MASK_METRICS
from dcn_det.distributed import Processes
from dcn_det.evaluation.metrics import Metrics


def resize_nearest(labels: Tensor, height: int, width: int) -> Tensor:
    """Resizes labels to the nearest pixel as OpenCV does, which the authors' released code uses.

    Pixel ``y`` of the result is pixel ``floor(y / (height / H))`` of the input, computed in float64; the same for x.

    Args:
        labels: (H, W), of any type.
        height, width: pixels.

    Returns:
        (height, width), of the same type and on the same device.
    """
    if labels.shape == (height, width):
        return labels
    rows, columns = (
        (torch.arange(new, dtype=torch.float64) * (1 / (new / old))).floor().long().clamp(max=old - 1)
        for new, old in zip((height, width), labels.shape)
    )
    return labels[rows.to(labels.device)][:, columns.to(labels.device)]


def confusion(predicted: Tensor, truth: Tensor, classes: int) -> Tensor:
    """Counts pairs of true and predicted classes.

    Args:
        predicted: (H, W), integers from 0 to ``classes - 1``.
        truth: (H, W), integers from 0 to ``classes - 1``, or 255 where a pixel is not counted.
        classes: number of classes.

    Returns:
        int64 (classes, classes) on the same device; element ``[i, j]`` is the number of pixels of class ``i`` that are
        predicted as class ``j``.
    """
    assert predicted.shape == truth.shape
    # Counting the ignored pixels as well, in bins of their own, takes less time than selecting the others.
    pairs = truth.int() * classes + predicted.int()
    counts = torch.bincount(pairs.flatten(), minlength=(IGNORED + 1) * classes)
    return counts[: classes * classes].view(classes, classes)


def class_ious(counts: Tensor) -> Tensor:
    """Returns the intersection over union of each class.

    Args:
        counts: int64 (classes, classes), see :func:`confusion`.

    Returns:
        float64 (classes,); nan for a class that occurs neither in the ground truth nor in the prediction.
    """
    both = counts.diagonal().double()
    return both / (counts.sum(0) + counts.sum(1) - counts.diagonal()).double()


def mean_iou(counts: Tensor) -> Tensor:
    """Returns the mean of :func:`class_ious` over the classes that occur, float64 (); nan if none does.

    A class occurs if at least one counted pixel has it in the ground truth or in the prediction. The authors' released
    code gives other classes an IoU of 0, which makes no difference on the validation sets of Pascal VOC and Cityscapes,
    where all classes occur.
    """
    return class_ious(counts).nanmean()


def pixel_accuracy(counts: Tensor) -> Tensor:
    """Returns the share of counted pixels whose class is predicted, float64 (); nan if there are none."""
    return counts.diagonal().sum().double() / counts.sum().double()


class ImageScore(NamedTuple):
    """Metrics of one image, over the classes that occur in it.

    Attributes:
        image_id: the data set's id.
        iou: mean IoU.
        accuracy: share of correct pixels.
    """

    image_id: int
    iou: float
    accuracy: float


@dataclass(frozen=True)
class MaskMetrics(Metrics):
    """Metrics of semantic segmentation.

    Attributes:
        confusion: int64 (classes, classes), pixels by true and predicted class, as ``mIoU`` counts them.
        scores: of the images, in order of their ids.
    """

    confusion: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 0), dtype=np.int64))
    scores: tuple[ImageScore, ...] = ()

    @property
    def compared(self) -> str:
        return f"{self.images} images, {int(self.confusion.sum())} labelled pixels"

    @property
    def totals(self) -> dict[str, int]:
        return {}

    def to_plain(self) -> dict[str, Any]:
        plain = super().to_plain()
        del plain["objects"], plain["detections"]
        return {**plain, "pixels": int(self.confusion.sum()), "confusion": self.confusion.tolist()}


class MaskEvaluator:
    """Accumulates confusion matrices over images.

    Metrics are ``mIoU``, the mean IoU as the authors' released code compares labels (``compare_at``); ``mIoU_full``,
    the mean IoU over the pixels of the original images; and ``pixel_accuracy``, compared like ``mIoU``. Classes that do
    not occur have no IoU and are left out of the mean, see :func:`mean_iou`.

    Args:
        categories: classes by label.
        compare_at: how ``mIoU`` compares a prediction with a ground truth of another size. ``input``: the ground truth
            is resized to the prediction (the authors on Pascal VOC). ``image``: the prediction is resized to the ground
            truth (the authors on Cityscapes). Both take the nearest pixel.
        device: of the predictions.
    """

    def __init__(
        self,
        categories: Sequence[Category],
        compare_at: Literal["input", "image"] = "image",
        device: torch.device | str = "cpu",
    ) -> None:
        self.categories = tuple(categories)
        self.compare_at = compare_at
        classes = len(self.categories)
        self.counts = torch.zeros(2, classes, classes, dtype=torch.int64, device=device)
        self._ids: list[int] = []
        self._scores: list[Tensor] = []

    def add(self, image_id: int, predicted: Tensor, truth: Tensor, full: Tensor | None = None) -> None:
        """Compares the prediction for one image with its ground truth.

        Args:
            image_id: the data set's id.
            predicted: (h, w), integers, class of each pixel of the network's input without padding, not mirrored.
            truth: uint8 (H, W), class of each pixel of the original image; 255 is not counted.
            full: (H, W), integers, class of each pixel of the original image if the scores were resized to it; None
                resizes ``predicted``.
        """
        truth = truth.to(self.counts.device, non_blocking=True)
        resized = resize_nearest(predicted, *truth.shape)
        if self.compare_at == "input":
            pair = predicted, resize_nearest(truth, *predicted.shape)
        else:
            pair = resized, truth
        classes = len(self.categories)
        compared = confusion(*pair, classes)
        self.counts[0] += compared
        if full is None and self.compare_at == "image":
            self.counts[1] += compared
        else:
            self.counts[1] += confusion(resized if full is None else full, truth, classes)
        self._ids.append(image_id)
        self._scores.append(torch.stack([mean_iou(compared), pixel_accuracy(compared)]))

    def metrics(self, processes: Processes | None = None) -> MaskMetrics:
        """Returns the metrics over the images of all processes; the same in each, for any number of them.

        Args:
            processes: all of them call this; None for a single one.
        """
        own = torch.stack(self._scores).tolist() if self._scores else []
        mine = [ImageScore(image_id, *values) for image_id, values in zip(self._ids, own)]
        parts = (processes or Processes()).gather((self.counts.cpu(), mine))
        compared, full = torch.stack([counts for counts, _ in parts]).sum(dim=0)
        scores = sorted(score for _, scores in parts for score in scores)
        values = (mean_iou(compared), mean_iou(full), pixel_accuracy(compared))
        return MaskMetrics(
            kind="masks",
            backend="dcn_det",
            values={name: float(value) for name, value in zip(MASK_METRICS, values)},
            per_class=dict(zip((category.name for category in self.categories), class_ious(compared).tolist())),
            images=len(scores),
            objects=0,
            detections=0,
            confusion=compared.numpy(),
            scores=tuple(scores),
        )
