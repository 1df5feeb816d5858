"""Spatial Transformers: modules that warp images by transformations predicted from the images themselves."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def warp(images: Tensor, matrices: Tensor, mode: str = "bilinear") -> Tensor:
    """Samples images along affine transformations; points outside read zero.

    Args:
        images: (N, C, H, W), floating point.
        matrices: (N, 2, 3) or (N, 3, 3), from (x, y, 1) of the output to x and y in the input, both from -1 to 1
            between the outer edges of the image.
        mode: ``bilinear`` or ``nearest``.

    Returns:
        (N, C, H, W).
    """
    grid = functional.affine_grid(matrices[:, :2], list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, mode, align_corners=False)


class SpatialTransformer(nn.Module):
    """Affine Spatial Transformer with one or more recurrent warps.

    A linear layer on ``features`` predicts six numbers, which are added to the identity and warp the image. With
    several warps, the same layers see the warped image and predict another transformation, which is composed with those
    before: every warp samples the original image, so that nothing is lost at its borders. Starts as the identity.

    Sources: Jaderberg et al., "Spatial Transformer Networks" (2015), section 3; for several warps, Lin and Lucey,
    "Inverse Compositional Spatial Transformer Networks" (2017), section 4.

    Args:
        features: network from images (N, C, H, W) to (N, channels).
        channels: number of its outputs.
        warps: number of warps.
    """

    def __init__(self, features: nn.Module, channels: int, warps: int = 1) -> None:
        super().__init__()
        self.features, self.warps = features, warps
        self.predict = nn.Linear(channels, 6)
        nn.init.zeros_(self.predict.weight)
        nn.init.zeros_(self.predict.bias)

    def matrices(self, images: Tensor) -> list[Tensor]:
        """Predicts the transformation after each warp.

        Args:
            images: (N, C, H, W).

        Returns:
            ``warps`` tensors (N, 3, 3), in the coordinates of :func:`warp`.
        """
        identity = torch.eye(3, dtype=images.dtype, device=images.device)
        found: list[Tensor] = []
        for _ in range(self.warps):
            warped = warp(images, found[-1]) if found else images
            step = identity + functional.pad(self.predict(self.features(warped)).unflatten(1, (2, 3)), (0, 0, 0, 1))
            found.append(found[-1] @ step if found else step)
        return found

    def forward(self, images: Tensor) -> Tensor:
        """Warps images (N, C, H, W); the size remains."""
        return warp(images, self.matrices(images)[-1])
