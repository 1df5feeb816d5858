"""Effective receptive field: the pixels that determine a unit, by its gradient.

Source: Luo et al., "Understanding the Effective Receptive Field in Deep Convolutional Neural Networks" (NIPS 2016).
The gradient of the unit in the middle of a feature map is propagated to the image; its absolute value, averaged over
images, is about a Gaussian. In a plain network with random weights its width grows as the square root of the depth,
while the theoretical receptive field, the pixels that can have an influence at all, grows in proportion to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dcn_det.errors import UserError
from dcn_det.models.detector import Detector, TwoStageDetector
from dcn_det.models.one_stage import OneStageDetector
from dcn_det.progress import Count
from dcn_det.structures import Batch
from dcn_det.visualize.offsets import deformable_layers
from dcn_det.visualize.plots import RIGHT, WRONG, png_bytes, require_matplotlib

Array = NDArray[np.float64]
WIDTHS = 4.0
"""Size of the effective field in standard deviations: 2 to each side of the middle."""
DEFORMABLE = "dcn_det.deform_conv2d."
"""Name of the operator."""
PROBE = 64
"""Side of the image on which the theoretical field is determined, in pixels."""


class GradientMap:
    """Mean absolute gradient of a unit, around its center.

    Args:
        radius: pixels that are kept on each side of the center.
    """

    def __init__(self, radius: int) -> None:
        self._radius = radius
        side = 2 * radius + 1
        self._sums: Array = np.zeros((side, side))
        self._counts: Array = np.zeros((side, side))

    def add(self, network: Callable[[Tensor], Tensor], images: Tensor) -> None:
        """Adds the gradients of the units in the middle of a feature map.

        Args:
            network: maps images to (N, C, h, w). The sum of all channels of a unit is differentiated, as in the paper.
            images: (N, channels, H, W), the network's input.
        """
        inputs = images.detach().requires_grad_()
        with torch.enable_grad():
            maps = network(inputs)
            row, column = (side // 2 for side in maps.shape[2:])
            (gradient,) = torch.autograd.grad(maps[:, :, row, column].float().sum(), inputs)
        height, width = inputs.shape[2:]
        center = (int((row + 0.5) * height / maps.shape[2]), int((column + 0.5) * width / maps.shape[3]))
        magnitude = gradient.abs().sum(dim=1).double().cpu().numpy()
        here, there = zip(*(self._overlap(at, side) for at, side in zip(center, (height, width))))
        self._sums[here] += magnitude[:, there[0], there[1]].sum(axis=0)
        self._counts[here] += len(magnitude)

    def _overlap(self, center: int, side: int) -> tuple[slice, slice]:
        """Returns the part of an axis of the map that an image covers, and that part of the image."""
        first, last = max(center - self._radius, 0), min(center + self._radius + 1, side)
        shift = self._radius - center
        return slice(first + shift, last + shift), slice(first, last)

    def mean(self) -> Array:
        """Returns (2 * radius + 1, 2 * radius + 1); 0 where no image reaches."""
        return self._sums / np.maximum(self._counts, 1)


@dataclass(frozen=True)
class ReceptiveField:
    """Effective receptive field of a unit.

    Attributes:
        gradient: (n, n), mean absolute gradient by row and column of pixels of the network's input.
        middle: y and x of the middle of the fitted Gaussian, in cells of ``gradient``.
        std: its standard deviations along y and x, in pixels.
        theoretical: side of the theoretical field in pixels; for deformable layers, that without offsets.
        images: number of images.
        deformable: number of deformable convolutions.
    """

    gradient: Array
    middle: tuple[float, float]
    std: tuple[float, float]
    theoretical: int
    images: int
    deformable: int

    @property
    def size(self) -> float:
        """Side of the effective field in pixels: 4 standard deviations (the geometric mean of y and x)."""
        return WIDTHS * math.sqrt(self.std[0] * self.std[1])

    @property
    def fraction(self) -> float:
        """Share of the theoretical field's side."""
        return self.size / self.theoretical


def fit_gaussian(profile: Array) -> tuple[float, float]:
    """Fits ``a * exp(-(i - middle)^2 / (2 std^2))`` to a profile by least squares.

    Args:
        profile: (n,), finite.

    Returns:
        ``middle`` and ``std``; ``std`` is between 0.25 and n.
    """
    count = len(profile)
    index = np.arange(count)
    middles, stds = np.linspace(0, count - 1, 41), np.geomspace(0.25, count, 41)
    middles = np.append(middles, profile.argmax())  # a narrow Gaussian can lie between the others
    for _ in range(12):  # the grid around the best pair becomes finer by 2 each time
        m, s = (each.ravel() for each in np.meshgrid(middles, stds))
        shapes = np.exp(-(((index - m[:, None]) / s[:, None]) ** 2) / 2)
        # What a shape explains of the sum of squares, with the best factor.
        best = int(((shapes @ profile) ** 2 / np.maximum((shapes**2).sum(axis=1), 1e-300)).argmax())
        middle, std = float(m[best]), float(s[best])
        reach_middle, reach_std = np.ptp(middles) / 4, math.sqrt(math.sqrt(stds[-1] / stds[0]))
        middles = np.linspace(middle - reach_middle, middle + reach_middle, 13)
        stds = np.geomspace(max(std / reach_std, 0.25), min(std * reach_std, count), 13)
    return middle, std


class _Reach(TorchDispatchMode):
    """Follows how many pixels of the input each tensor depends on, and the pixels per cell, along an axis."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        # Tensors are kept, since a new one could get the id of a freed one.
        self._known: dict[int, tuple[Tensor, int, int]] = {id(image): (image, 1, 1)}

    def of(self, tensor: Tensor) -> int:
        """Returns the pixels that a tensor depends on."""
        return self._known[id(tensor)][1]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        # The offsets of a deformable convolution move its field and do not count to it.
        inputs = args[:1] if str(func).startswith(DEFORMABLE) else args
        sources = [self._known[id(each)][1:] for each in _tensors(inputs) if id(each) in self._known]
        if sources:
            size, jump = (max(values) for values in zip(*sources))
            reach, stride = _kernel(str(func), args)
            size, jump = size + reach * jump, jump * stride
            for tensor in _tensors(result if isinstance(result, tuple | list) else (result,)):
                self._known[id(tensor)] = (tensor, size, jump)
        return result


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    flat = [each for value in values for each in (value if isinstance(value, tuple | list) else (value,))]
    return [each for each in flat if isinstance(each, Tensor)]


def _kernel(operator: str, args: Sequence[Any]) -> tuple[int, int]:
    """Returns by how many cells an operator extends the field of its input, and its stride."""
    if operator.startswith("aten.convolution."):
        sizes, strides, dilations = args[1].shape[2:], args[3], args[5]
    elif operator.startswith(DEFORMABLE):
        sizes, strides, dilations = args[2].shape[2:], args[5], args[7]
    elif operator.startswith(("aten.max_pool2d_with_indices.", "aten.avg_pool2d.")):
        sizes, strides, dilations = args[1], args[2] if len(args) > 2 and args[2] else args[1], (1, 1)
    else:
        return 0, 1
    return max((size - 1) * dilation for size, dilation in zip(sizes, dilations)), max(strides)


def theoretical_field(network: Callable[[Tensor], Tensor], image: Tensor) -> int:
    """Determines the side of the theoretical receptive field of a network's outputs in pixels.

    Normalization over positions (group norm) does not count. Deformable convolutions count without their offsets.

    Args:
        network: of convolutions, pooling, and operations on single positions.
        image: (1, channels, H, W), any values.
    """
    with torch.no_grad(), _Reach(image) as reach:
        return reach.of(network(image))


def network_of(model: Detector[Any]) -> Callable[[Tensor], Tensor]:
    """Returns the part of a detector that computes the last map from which its boxes are predicted: normalized images
    to (N, C, h, w)."""
    if isinstance(model, OneStageDetector):
        name = model.feature
    else:
        assert isinstance(model, TwoStageDetector)
        name = model.head_features[-1]
    return lambda images: model.backbone(images)[name]


def measure(
    model: Detector[Any], batches: Iterable[Batch], images: int, radius: int, progress: Count | None = None
) -> ReceptiveField:
    """Measures the effective receptive field of a detector's last feature map.

    Args:
        model: the detector; it is put into evaluation mode.
        batches: of one image each.
        images: number of batches.
        radius: pixels of the gradient to keep on each side of its center.
        progress: called with the number of finished images and the total.

    Raises:
        UserError: gradients are zero or not finite.
    """
    model.eval()
    network, preprocess = network_of(model), model.preprocess
    device = next(model.parameters()).device
    total = GradientMap(radius)
    for number, batch in enumerate(batches, start=1):
        batch = batch.to(device)
        total.add(network, preprocess(batch.images, batch.infos))
        if progress is not None:
            progress(number, images)
    probe = torch.zeros(1, 3, PROBE, PROBE, device=device)
    return receptive_field(total.mean(), theoretical_field(network, probe), images, len(deformable_layers(model)))


def receptive_field(gradient: Array, theoretical: int, images: int = 1, deformable: int = 0) -> ReceptiveField:
    """Fits a Gaussian to a gradient, along each axis to its sums over the other one.

    Raises:
        UserError: the gradient is zero or not finite.
    """
    if not np.isfinite(gradient).all() or not gradient.any():
        raise UserError("the gradient of the unit in the middle is zero or not finite: the network is not trained")
    (y, std_y), (x, std_x) = (fit_gaussian(gradient.sum(axis=axis)) for axis in (1, 0))
    return ReceptiveField(gradient, (y, x), (std_y, std_x), theoretical, images, deformable)


def table(fields: Mapping[str, ReceptiveField]) -> str:
    """Returns the numbers as text, a line per network, by its name."""
    rows = [["", "deformable layers", "effective (px)", "std y, x (px)", "theoretical (px)", "effective/theoretical"]]
    for name, each in fields.items():
        stds = ", ".join(f"{std:.1f}" for std in each.std)
        rows.append(
            [name, str(each.deformable), f"{each.size:.1f}", stds, str(each.theoretical), f"{each.fraction:.1%}"]
        )
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def to_plain(fields: Mapping[str, ReceptiveField]) -> list[dict[str, Any]]:
    """Returns the numbers as JSON-ready records."""
    return [
        {
            "name": name,
            "size": each.size,
            "std_y": each.std[0],
            "std_x": each.std[1],
            "theoretical": each.theoretical,
            "fraction": each.fraction,
            "images": each.images,
            "deformable_layers": each.deformable,
        }
        for name, each in fields.items()
    ]


def plot(fields: Mapping[str, ReceptiveField]) -> bytes:
    """Draws the gradients side by side, and their profiles along x with the fitted Gaussians; returns a PNG file.

    Raises:
        UserError: matplotlib is not installed.
    """
    require_matplotlib("--plot")
    from matplotlib.figure import Figure
    from matplotlib.patches import Ellipse, Rectangle

    count = len(fields)
    figure = Figure(figsize=(3.6 * count + 4.2, 3.9), dpi=150, layout="constrained")
    axes = figure.subplots(1, count + 1)
    shown = min(
        max(0.6 * each.theoretical for each in fields.values()), *(len(e.gradient) / 2 for e in fields.values())
    )
    for ax, (name, each), color in zip(axes, fields.items(), (RIGHT, WRONG)):
        radius = len(each.gradient) // 2
        extent = (-radius - 0.5, radius + 0.5, radius + 0.5, -radius - 0.5)
        # Square roots: the paper shows its gradients so, too, since they fall off fast.
        ax.imshow(np.sqrt(each.gradient / each.gradient.max()), cmap="inferno", extent=extent, interpolation="bilinear")
        y, x = (middle - radius for middle in each.middle)
        ax.add_patch(Ellipse((x, y), WIDTHS * each.std[1], WIDTHS * each.std[0], fill=False, color="white"))
        side = each.theoretical
        ax.add_patch(Rectangle((x - side / 2, y - side / 2), side, side, fill=False, color="#8fd3ff", linestyle="--"))
        ax.set(xlim=(-shown, shown), ylim=(shown, -shown), xlabel="pixels", title=name)
        ax.title.set(fontsize=9, parse_math=False)
        profile = each.gradient.sum(axis=0)
        pixels = np.arange(len(profile)) - radius
        axes[-1].plot(pixels, _smooth(profile / profile.sum()), color=color, linewidth=0.8, label=name)
        shape = np.exp(-(((pixels - x) / each.std[1]) ** 2) / 2)
        factor = (shape @ profile) / (shape @ shape) / profile.sum()
        axes[-1].plot(pixels, factor * shape, color=color, linewidth=1.8, linestyle="--")
    axes[-1].set(xlim=(-shown, shown), xlabel="pixels along x", title="share of the gradient; dashed: fitted Gaussian")
    axes[-1].title.set_fontsize(9)
    axes[-1].spines[["top", "right"]].set_visible(False)
    return png_bytes(figure)


def _smooth(profile: Array, width: int = 8) -> Array:
    """Returns means over some neighbors: strided convolutions leave out pixels in between."""
    return np.convolve(profile, np.full(width, 1 / width), mode="same")
