"""Inputs of detectors, and statistics for their normalization layers."""

import torch
from torch import nn

from dcn_det.structures import Batch, ImageInfo, Target

CLASSES = 3


def info(height: int, width: int, seed: int = 0) -> ImageInfo:
    return ImageInfo(seed, f"{seed}.jpg", height, width, height, width, seed=seed)


def target(*boxes: tuple[float, float, float, float]) -> Target:
    return Target(torch.tensor(boxes).reshape(-1, 4), torch.arange(len(boxes)) % CLASSES)


def batch(*sizes: tuple[int, int], targets: list[Target] | None = None, seed: int = 0) -> Batch:
    """Random images of these heights and widths, padded to the largest with noise."""
    generator = torch.Generator().manual_seed(seed)
    height, width = max(size[0] for size in sizes), max(size[1] for size in sizes)
    images = torch.randint(0, 256, (len(sizes), 3, height, width), dtype=torch.uint8, generator=generator)
    return Batch(images, [info(*size, seed=index) for index, size in enumerate(sizes)], targets or [])


TWO = [target((10, 12, 50, 60), (30, 5, 90, 40)), target((0, 0, 40, 30))]


def scramble(network: nn.Module, seed: int = 0) -> None:
    """Gives the normalization layers statistics and weights that differ from those of a fresh network."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in network.state_dict().items():
        if name.endswith("running_var") or (value.ndim == 1 and name.endswith("weight")):
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
        elif name.endswith(("running_mean", "bias")):
            value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
