"""Records exchanged between data, models, inference and evaluation.

Boxes are half-open float ``(x1, y1, x2, y2)`` in pixels, so ``width = x2 - x1``. Labels are 0-based indices into
the data set's list of categories; background has no label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dcn_det.categories import Category
from dcn_det.errors import UserError
from dcn_det.files import write_json
from dcn_det.images import Image, as_rgb, draw_boxes

__all__ = ["AnyBatch", "Batch", "Category", "Detection", "Detections", "ImageInfo", "LabelBatch", "MaskBatch", "Target"]


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """Origin of an image, and its transformation to the network's input.

    Attributes:
        image_id: the data set's id.
        file_name: path relative to the image folder.
        height, width: original size in pixels.
        input_height, input_width: size in the network's input, before padding to the batch.
        flipped: mirrored left to right after resizing.
        seed: seed of all random choices for this image in this epoch (augmentation, anchor and RoI
            sampling), so that results do not depend on batch, worker or process.
    """

    image_id: int
    file_name: str
    height: int
    width: int
    input_height: int
    input_width: int
    flipped: bool = False
    seed: int = 0

    @property
    def scale(self) -> tuple[float, float]:
        """``(input / original)`` along x and along y."""
        return self.input_width / self.width, self.input_height / self.height


@dataclass(slots=True)
class Target:
    """Ground truth of one image, in input pixels.

    Attributes:
        boxes: float32 (N, 4).
        labels: int64 (N,).
    """

    boxes: Tensor
    labels: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Target:
        return Target(
            self.boxes.to(device, non_blocking=non_blocking),
            self.labels.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> Target:
        return Target(self.boxes.pin_memory(), self.labels.pin_memory())


class AnyBatch(Protocol):
    """Images of one step with the targets of any task: what loading and training need to know of a batch.

    Attributes:
        images: uint8 (B, 3, H, W), RGB.
        infos: one per image.
    """

    images: Tensor
    infos: list[ImageInfo]

    def __len__(self) -> int: ...

    def to(self: B, device: torch.device | str, non_blocking: bool = False) -> B: ...

    def pin_memory(self: B) -> B: ...

    def tensors(self) -> list[Tensor]:
        """Returns all tensors, which a loader process moves to shared memory."""

    def to_plain(self) -> dict[str, Any]:
        """Returns tensors and plain containers, to save with a run that cannot continue."""


B = TypeVar("B", bound=AnyBatch)


@dataclass(slots=True)
class Batch:
    """Images of one step in detection.

    Attributes:
        images: uint8 (B, 3, H, W), RGB, each image in the top-left corner; the rest is padding whose value the
            model overwrites.
        infos: one per image.
        targets: one per image; empty when testing.
    """

    images: Tensor
    infos: list[ImageInfo]
    targets: list[Target] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.infos)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        return Batch(
            self.images.to(device, non_blocking=non_blocking),
            self.infos,
            [t.to(device, non_blocking) for t in self.targets],
        )

    def pin_memory(self) -> Batch:
        return Batch(self.images.pin_memory(), self.infos, [t.pin_memory() for t in self.targets])

    def tensors(self) -> list[Tensor]:
        return [self.images, *(each for target in self.targets for each in (target.boxes, target.labels))]

    def to_plain(self) -> dict[str, Any]:
        return {
            "images": self.images,
            "infos": [asdict(info) for info in self.infos],
            "targets": [{"boxes": target.boxes, "labels": target.labels} for target in self.targets],
        }


@dataclass(slots=True)
class LabelBatch:
    """Images of one step in classification, all of one size.

    Attributes:
        images: uint8 (B, 3, H, W), RGB.
        infos: one per image.
        labels: int64 (B,).
    """

    images: Tensor
    infos: list[ImageInfo]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.infos)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> LabelBatch:
        images, labels = (each.to(device, non_blocking=non_blocking) for each in self.tensors())
        return LabelBatch(images, self.infos, labels)

    def pin_memory(self) -> LabelBatch:
        return LabelBatch(self.images.pin_memory(), self.infos, self.labels.pin_memory())

    def tensors(self) -> list[Tensor]:
        return [self.images, self.labels]

    def to_plain(self) -> dict[str, Any]:
        return {"images": self.images, "infos": [asdict(info) for info in self.infos], "labels": self.labels}


@dataclass(slots=True)
class MaskBatch:
    """Images of one step in semantic segmentation.

    Attributes:
        images: uint8 (B, 3, H, W), RGB, each image in the top-left corner; the rest is padding whose value the
            model overwrites.
        infos: one per image.
        labels: training only: uint8 (B, H, W), class of each pixel of the input; 255 in the padding and where a pixel
            has no label. None when testing.
        truths: testing only: uint8 (height, width) per image, the same for the original image; empty if the images
            have no masks.
    """

    images: Tensor
    infos: list[ImageInfo]
    labels: Tensor | None = None
    truths: list[Tensor] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.infos)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> MaskBatch:
        return self._map(lambda each: each.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> MaskBatch:
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> MaskBatch:
        labels = None if self.labels is None else change(self.labels)
        return MaskBatch(change(self.images), self.infos, labels, [change(each) for each in self.truths])

    def tensors(self) -> list[Tensor]:
        return [self.images, *([] if self.labels is None else [self.labels]), *self.truths]

    def to_plain(self) -> dict[str, Any]:
        return {
            "images": self.images,
            "infos": [asdict(info) for info in self.infos],
            "labels": self.labels,
            "truths": self.truths,
        }


class Detection(NamedTuple):
    """One object.

    Attributes:
        box: half-open ``(x1, y1, x2, y2)`` in pixels.
        score: from 0 to 1.
        label: index into the categories.
        name: of the class.
    """

    box: tuple[float, float, float, float]
    score: float
    label: int
    name: str


@dataclass(slots=True)
class Detections:
    """Objects found in one image, best score first unless stated otherwise.

    ``len(detections)`` counts them, iterating yields a :class:`Detection` for each, and indexing with a mask, a slice
    or positions selects some of them.

    Attributes:
        boxes: float32 (N, 4), half-open ``(x1, y1, x2, y2)`` in pixels; of the original image if they come from a
            :class:`dcn_det.inference.predictor.Predictor`.
        scores: float32 (N,).
        labels: int64 (N,), indices into ``categories``.
        categories: by label; empty inside the network, where classes have no names.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    categories: tuple[Category, ...] = ()

    @property
    def names(self) -> list[str]:
        """Class name of each detection."""
        return [self._name(label) for label in self.labels.tolist()]

    def _name(self, label: int) -> str:
        return self.categories[label].name if self.categories else str(label)

    def __len__(self) -> int:
        return self.boxes.shape[0]

    def __iter__(self) -> Iterator[Detection]:
        for box, score, label in zip(self.boxes.tolist(), self.scores.tolist(), self.labels.tolist()):
            yield Detection(tuple(box), score, label, self._name(label))

    @overload
    def __getitem__(self, which: int) -> Detection: ...

    @overload
    def __getitem__(self, which: Tensor | NDArray[Any] | Sequence[int] | Sequence[bool] | slice) -> Detections: ...

    def __getitem__(self, which: Any) -> Detection | Detections:
        """Selects by mask (bool), positions (integers) or slice; a single integer returns a :class:`Detection`."""
        if isinstance(which, int | np.integer) and not isinstance(which, bool):
            if not -len(self) <= which < len(self):
                raise IndexError(f"detection {which} of {len(self)}")
            box, score, label = self.boxes[which].tolist(), self.scores[which].item(), int(self.labels[which])
            return Detection(tuple(box), score, label, self._name(label))
        if not isinstance(which, slice | Tensor):
            which = torch.as_tensor(which, dtype=None if len(which) else torch.int64)
        return Detections(self.boxes[which], self.scores[which], self.labels[which], self.categories)

    @staticmethod
    def join(parts: Sequence[Detections]) -> Detections:
        """Concatenates detections of the same categories; at least one part."""
        return Detections(
            torch.cat([part.boxes for part in parts]),
            torch.cat([part.scores for part in parts]),
            torch.cat([part.labels for part in parts]),
            parts[0].categories,
        )

    def to(self, device: torch.device | str) -> Detections:
        return Detections(self.boxes.to(device), self.scores.to(device), self.labels.to(device), self.categories)

    def above(self, score: float) -> Detections:
        """Returns the detections with scores above ``score`` (exclusive)."""
        return self[self.scores > score]

    def to_plain(self) -> list[dict[str, Any]]:
        """Returns JSON-ready records of ``box`` (half-open ``[x1, y1, x2, y2]``, pixels), ``score`` and ``class``."""
        return [
            {"box": [round(value, 2) for value in each.box], "score": round(each.score, 5), "class": each.name}
            for each in self
        ]

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """Returns COCO results (cocodataset.org, "Results format").

        Args:
            image_id: the image's id in the annotation file.

        Returns:
            One dict per detection with ``image_id``, ``category_id``, ``bbox`` (x, y, width, height, where width is
            ``x2 - x1``) and ``score``. Detections of classes that the annotations lack are left out.

        Raises:
            UserError: a box or score is non-finite.
            ValueError: there are no categories.
        """
        boxes, scores = self.boxes.detach().double(), self.scores.detach().double()
        if not (boxes.isfinite().all() and scores.isfinite().all()):
            raise UserError(f"image {image_id}: the detector returned non-finite boxes or scores")
        if len(self) and not self.categories:
            raise ValueError("COCO results need category ids, but these detections have no categories")
        return [
            {
                "image_id": image_id,
                "category_id": self.categories[label].id,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": score,
            }
            for (x1, y1, x2, y2), score, label in zip(boxes.tolist(), scores.tolist(), self.labels.tolist())
            if self.categories[label].annotated
        ]

    def to_supervision(self) -> Any:
        """Returns ``supervision.Detections`` with ``xyxy``, ``confidence``, ``class_id`` and ``class_name``.

        Raises:
            ImportError: supervision is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise ImportError("to_supervision requires the package supervision: pip install supervision") from error
        return supervision.Detections(
            xyxy=self.boxes.detach().cpu().numpy().reshape(-1, 4),
            confidence=self.scores.detach().cpu().numpy(),
            class_id=self.labels.cpu().numpy(),
            data={"class_name": np.array(self.names, dtype=str)},
        )

    def draw(self, image: Any) -> Image:
        """Draws boxes, names and scores on a copy of the image they were found in.

        Args:
            image: see :func:`dcn_det.images.as_rgb`.

        Returns:
            uint8 (H, W, 3) RGB.
        """
        boxes = self.boxes.detach().cpu().numpy()
        names = [category.name for category in self.categories] or [str(i) for i in range(self._classes())]
        return draw_boxes(as_rgb(image), boxes, self.labels.tolist(), names, self.scores.tolist())

    def _classes(self) -> int:
        return int(self.labels.max()) + 1 if len(self) else 0

    def save(self, path: str | Path) -> None:
        """Writes the records of :meth:`to_plain` as JSON, atomically.

        Raises:
            OSError: the file cannot be written.
        """
        write_json(path, self.to_plain())
