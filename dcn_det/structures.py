"""The records that travel between data, models, inference and evaluation.

Boxes are half-open float ``(x1, y1, x2, y2)`` in pixels, so ``width = x2 - x1``. Labels are 0-based indices into
the data set's list of categories; background has no label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dcn_det.categories import Category

__all__ = ["Batch", "Category", "Detections", "ImageInfo", "Target"]


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """Where an image came from and how it was brought to the network's input.

    Attributes:
        image_id: the data set's id.
        file_name: path relative to the image folder.
        height, width: original size in pixels.
        input_height, input_width: size in the network's input, before padding to the batch.
        flipped: mirrored left to right after resizing.
        seed: drives every random choice made for this image in this epoch (augmentation, anchor and RoI
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


@dataclass(slots=True)
class Batch:
    """Images of one step.

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


@dataclass(slots=True)
class Detections:
    """What a detector found in one image, best score first unless the producer says otherwise.

    Attributes:
        boxes: float32 (N, 4), in the pixels the producer states.
        scores: float32 (N,).
        labels: int64 (N,).
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return self.boxes.shape[0]

    def __getitem__(self, which: Tensor) -> Detections:
        """Those at the given positions (int64) or where a mask (bool) is set."""
        return Detections(self.boxes[which], self.scores[which], self.labels[which])

    @staticmethod
    def join(parts: Sequence[Detections]) -> Detections:
        """One after the other; at least one."""
        return Detections(
            torch.cat([part.boxes for part in parts]),
            torch.cat([part.scores for part in parts]),
            torch.cat([part.labels for part in parts]),
        )

    def to(self, device: torch.device | str) -> Detections:
        return Detections(self.boxes.to(device), self.scores.to(device), self.labels.to(device))
