"""Sampling locations of stacked deformable convolutions in an image.

Source: Dai et al., "Deformable Convolutional Networks" (2017), Figures 5 and 6: a unit of the last of three deformable
3x3 convolutions samples 9 points of its input; each of these is computed from 9 points one layer below, and so on:
9^3 = 729.

Coordinates. Cell ``i`` of a map of stride ``s`` is at pixel ``(i + 0.5) * s`` of the network's input, the middle of the
pixels that it stands for, as for anchors and RoI pooling. Pixels of the network's input are divided by the scale of
resizing to become pixels of the original image. Between two layers, the cells of a map are those of the layer below or,
where the network strides in between, every second one; plain convolutions in between count as their middle tap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from typing import Any

import torch
from torch import Tensor, nn

from dcn_det.errors import UserError
from dcn_det.structures import ImageInfo
from dcn_det.visualize.offsets import Offsets, deformable_layers, reading_offsets, stride_of

STACKED = 3
"""Maximum number of layers of a stack, as in the paper's figures."""
PROBE = 64
"""Side of the image on which the order of layers is found, in pixels."""


@dataclass(frozen=True, slots=True)
class StackedLayer:
    """One deformable convolution of a stack, in one image.

    Attributes:
        name: of the layer in the detector.
        offset: float32 (G, kh, kw, 2, H_out, W_out): y and x, in cells of the layer's input.
        input_size: height and width of the layer's input.
        stride, padding, dilation: along y and x.
        border: see :func:`dcn_det.ops.deform_conv2d`.
        input_stride: of the layer's input, in pixels of the network's input.
    """

    name: str
    offset: Tensor
    input_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    border: str
    input_stride: int

    @property
    def output_stride(self) -> int:
        """Stride of the layer's output, in pixels of the network's input."""
        return self.input_stride * self.stride[0]

    def sample(self, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Computes where filters sample.

        Args:
            cells: (G, M, 2), y and x of filters in the layer's output. Offsets are interpolated bilinearly between
                cells, and beyond the outermost ones taken from these.

        Returns:
            (G, M, kh * kw, 2), y and x in the layer's input; and bool (G, M, kh * kw), whether a sample reads the map
            rather than the zeros around it.
        """
        offset = self.offset.to(cells.dtype)
        rows, columns = self.offset.shape[1:3]
        offset = _interpolate(offset.flatten(1, 3), cells).unflatten(2, (rows * columns, 2))
        taps = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"), dim=-1)
        stride, padding, dilation = (cells.new_tensor(each) for each in (self.stride, self.padding, self.dilation))
        points = (cells * stride - padding)[:, :, None] + taps.reshape(-1, 2) * dilation + offset
        above = points >= 0 if self.border == "dcn_v1" else points > -1
        return points, (above & (points < points.new_tensor(self.input_size))).all(dim=-1)


def _interpolate(maps: Tensor, cells: Tensor) -> Tensor:
    """Interpolates maps (G, C, H, W) at cells (G, M, 2), y and x; returns (G, M, C)."""
    height, width = maps.shape[2:]
    y, x = cells[..., 0].clamp(0, height - 1), cells[..., 1].clamp(0, width - 1)
    top, left = y.floor(), x.floor()
    result = torch.zeros(*cells.shape[:2], maps.shape[1], dtype=cells.dtype)
    group = torch.arange(len(maps))[:, None]
    for down, right in product((0, 1), repeat=2):
        row, column = (top + down).clamp(max=height - 1).long(), (left + right).clamp(max=width - 1).long()
        weight = (1 - (y - top - down).abs()) * (1 - (x - left - right).abs())
        result += weight[..., None] * maps.transpose(0, 1)[:, group, row, column].permute(1, 2, 0)
    return result


@dataclass(frozen=True, slots=True)
class Samples:
    """Sampling locations of one unit.

    Attributes:
        unit: x and y of the unit in pixels of the original image.
        cell: row and column of the unit in the output of the last layer.
        points: (G, M, 2), x and y in pixels of the original image, by offset group; M is the product of the numbers of
            taps, and the taps of the lowest layer vary fastest.
        reads: bool (G, M), False for samples that read zeros beyond a map, in any of the layers.
    """

    unit: tuple[float, float]
    cell: tuple[int, int]
    points: Tensor
    reads: Tensor


@dataclass(frozen=True, slots=True)
class Stack:
    """Deformable convolutions of which each reads the one before, in one image.

    Attributes:
        layers: the lowest first.
        scale: pixels of the network's input per pixel of the original image, along x and y.
        size: height and width of the original image.
    """

    layers: tuple[StackedLayer, ...]
    scale: tuple[float, float]
    size: tuple[int, int]

    @property
    def groups(self) -> int:
        return max(len(layer.offset) for layer in self.layers)

    def _steps(self) -> list[float]:
        """Returns the cells of the output of the layer below per cell of each layer's input; 1 for the lowest layer."""
        return [1.0, *(upper.input_stride / lower.output_stride for lower, upper in pairwise(self.layers))]

    def _pixels(self, cells: Tensor) -> Tensor:
        """Maps y and x in the input of the lowest layer to x and y in pixels of the original image."""
        return (cells + 0.5).flip(-1) * self.layers[0].input_stride / cells.new_tensor(self.scale)

    def unit_at(self, x: float, y: float) -> tuple[int, int]:
        """Returns row and column of the unit whose undeformed filter is centered nearest to a point.

        Args:
            x, y: in pixels of the original image.
        """
        cells = [
            y * self.scale[1] / self.layers[0].input_stride - 0.5,
            x * self.scale[0] / self.layers[0].input_stride - 0.5,
        ]
        for layer, step in zip(self.layers, self._steps()):
            for axis in (0, 1):
                middle = (layer.offset.shape[1 + axis] - 1) / 2 * layer.dilation[axis] - layer.padding[axis]
                cells[axis] = (cells[axis] / step - middle) / layer.stride[axis]
        height, width = self.layers[-1].offset.shape[-2:]
        return min(max(math.floor(cells[0] + 0.5), 0), height - 1), min(max(math.floor(cells[1] + 0.5), 0), width - 1)

    def undeformed(self) -> Stack:
        """Returns the stack with offsets of zero."""
        layers = (replace(layer, offset=torch.zeros_like(layer.offset)) for layer in self.layers)
        return replace(self, layers=tuple(layers))

    def samples(self, x: float, y: float) -> Samples:
        """Computes where the unit nearest to a point samples.

        All layers of a path from the unit to a sample use the same offset group. The network also has paths that change
        the group, since each convolution mixes all channels.

        Args:
            x, y: in pixels of the original image.
        """
        row, column = self.unit_at(x, y)
        middle = self.undeformed()._paths(row, column)[0].mean(dim=(0, 1))
        points, reads = self._paths(row, column)
        return Samples((float(middle[0]), float(middle[1])), (row, column), points, reads)

    def _paths(self, row: int, column: int) -> tuple[Tensor, Tensor]:
        cells = torch.tensor([row, column], dtype=torch.float64).expand(self.groups, 1, 2)
        reads = torch.ones(self.groups, 1, dtype=torch.bool)
        for layer, step in zip(reversed(self.layers), reversed(self._steps())):
            groups = torch.arange(self.groups) % len(layer.offset)
            cells, inside = replace(layer, offset=layer.offset[groups]).sample(cells)
            reads = (reads[:, :, None] & inside).flatten(1)
            cells = cells.flatten(1, 2) * step
        return self._pixels(cells), reads

    def lengths(self, layer: StackedLayer) -> Tensor:
        """Computes the mean length of the offsets of a layer.

        Returns:
            float32 (H_out, W_out): mean over offset groups and taps, in pixels of the original image.
        """
        pixels = torch.tensor([layer.input_stride / scale for scale in reversed(self.scale)]).view(2, 1, 1)
        return torch.linalg.vector_norm(layer.offset * pixels, dim=3).mean(dim=(0, 1, 2))


def stacked_layers(model: nn.Module) -> tuple[str, ...]:
    """Finds the last deformable convolutions with more than one tap that a backbone runs one after the other.

    Of parallel branches, the one that runs last is taken. Layers that a backbone runs more than once are left out.

    Args:
        model: a detector in evaluation mode.

    Returns:
        At most :data:`STACKED` names, the lowest layer first.
    """
    backbone: Any = model.backbone
    layers = {name: each for name, each in deformable_layers(model).items() if math.prod(each.kernel_size) > 1}
    probe = next(backbone.parameters()).new_zeros(1, 3, PROBE, PROBE, dtype=torch.float32)
    readings: list[Offsets] = []
    with torch.inference_mode(), reading_offsets(model, readings.append):
        backbone(probe)
        calls = [each.name for each in readings]
        order = [name for name in calls if name in layers and calls.count(name) == 1]
        chain = order[-1:]
        for name in reversed(order[:-1]):
            if len(chain) < STACKED and _feeds(backbone, probe, layers[name], layers[chain[0]]):
                chain.insert(0, name)
    return tuple(chain)


def _feeds(network: nn.Module, probe: Tensor, lower: nn.Module, upper: nn.Module) -> bool:
    """Whether the input of one layer depends on the output of another: whether NaN spread from there to it."""
    reached = []
    spread = lower.register_forward_hook(lambda layer, inputs, output: torch.full_like(output, math.nan))
    watch = upper.register_forward_pre_hook(lambda layer, inputs: reached.append(bool(inputs[0].isnan().any())))
    try:
        network(probe)
    finally:
        spread.remove()
        watch.remove()
    return any(reached)


def stack_of(readings: Sequence[Offsets], input_size: Sequence[int], info: ImageInfo) -> Stack:
    """Stacks the readings of one image.

    Args:
        readings: of layers that run one after the other, the lowest first, for a batch of one image.
        input_size: height and width of the network's input.
        info: the image, not mirrored.

    Raises:
        UserError: offsets are not finite.
    """
    layers = []
    for reading in readings:
        layer, offset = reading.layer, reading.offset[0].float().cpu()
        if not offset.isfinite().all():
            raise UserError(f"offsets of {reading.name} are not finite")
        layers.append(
            StackedLayer(
                reading.name,
                offset.reshape(layer.offset_groups, *layer.kernel_size, 2, *offset.shape[1:]),
                reading.input_size,
                layer.stride,
                layer.padding,
                layer.dilation,
                layer.border,
                stride_of(input_size, reading.input_size),
            )
        )
    return Stack(tuple(layers), info.scale, (info.height, info.width))
