"""Conversion of uint8 images to the network's input, on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcn_det.structures import ImageInfo


def padded_side(side: int, multiple: int) -> int:
    """Returns the side of an image in pixels, rounded up to a multiple."""
    return -(-side // multiple) * multiple


class Preprocess(nn.Module):
    """Normalizes a batch as the backbone's weights expect it, and pads it as the backbone requires.

    Args:
        channel_order: of the result; images are RGB.
        mean: subtracted from pixel values 0-255, in the order red, green, blue.
        std: divisor applied afterwards, in the order red, green, blue.
        size_multiple: the batch is padded at the right and at the bottom to multiples of this, in pixels.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        channel_order: Literal["rgb", "bgr"] = "rgb",
        mean: Sequence[float] = (123.15, 115.90, 103.06),
        std: Sequence[float] = (1.0, 1.0, 1.0),
        size_multiple: int = 1,
    ) -> None:
        super().__init__()
        self.size_multiple = size_multiple
        self.reverse = channel_order == "bgr"
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor, infos: Sequence[ImageInfo]) -> Tensor:
        """uint8 (B, 3, H, W) -> float32 (B, 3, padded H, padded W), 0 in the padding right of and below each image."""
        height, width = images.shape[2:]
        right, below = (padded_side(side, self.size_multiple) - side for side in (width, height))
        if right or below:
            images = F.pad(images, (0, right, 0, below))
        x = (images.to(self.mean.dtype) - self.mean) / self.std
        for image, info in zip(x, infos):
            image[:, info.input_height :] = 0
            image[:, :, info.input_width :] = 0
        return x.flip(1) if self.reverse else x
