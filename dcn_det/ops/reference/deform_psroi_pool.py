"""Deformable position-sensitive RoI pooling in plain PyTorch operations.

The samples of a bin form a grid, so that a bin is a sum of cells, each weighted by a factor of its row and a
factor of its column. The results follow the authors' released code.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dcn_det.ops.reference.roi_pooling import bin_parts, chunks, read_rois, source_planes


class Axis(NamedTuple):
    """One axis of every bin: the two cells around each sample.

    All are (R, classes, pooled, pooled, 2 * samples), except ``counted``, without the last dimension.
    """

    cells: Tensor
    weights: Tensor
    slopes: Tensor  # derivatives of the weights with respect to the position
    counted: Tensor  # number of samples that count


def sample_axis(start: Tensor, step: Tensor, samples: int, size: int) -> Axis:
    """Samples at ``start + i * step`` over cells [0, size)."""
    steps = torch.arange(samples, device=start.device, dtype=start.dtype)
    position = start[..., None] + steps * step[..., None]
    counts = (position >= -0.5) & (position <= size - 0.5)
    position = torch.where(counts, position, torch.zeros_like(position)).clamp(0, size - 1)
    lower, upper = position.detach().floor(), position.detach().ceil()
    fraction, counted = position - lower, counts.to(position.dtype)
    inside = counted * (upper > lower)
    return Axis(
        torch.cat([lower, upper], -1).long(),
        torch.cat([counted * (1 - fraction), counted * fraction], -1),
        torch.cat([-inside, inside], -1),
        counted.sum(-1),
    )


class Problem:
    """Bins of a call, with its tensors in the dtype of sums; takes the arguments of the operator."""

    def __init__(
        self,
        input: Tensor,
        rois: Tensor,
        offset: Tensor | None,
        spatial_scale: float,
        output_dim: int,
        group_size: int,
        pooled_size: int,
        part_size: int,
        samples_per_bin: int,
        offset_std: float,
    ) -> None:
        batch, self.channels, self.height, self.width = input.shape
        self.cells = input.to(rois.dtype).reshape(-1)
        self.regions = read_rois(rois, spatial_scale, -0.5, batch)
        self.classes = 1 if offset is None else offset.shape[1] // 2
        self.per_class = output_dim // self.classes
        self.offset_std = offset_std

        parts = bin_parts(pooled_size, part_size, rois.device)
        self.part_of_bin = (parts[:, None] * part_size + parts).flatten()
        shape = (rois.shape[0], self.classes, 2, pooled_size, pooled_size)
        moves = rois.new_zeros(shape)
        if offset is not None:
            moves = offset.reshape(*shape[:3], part_size**2)[..., self.part_of_bin].reshape(shape) * offset_std

        def axis(origin: Tensor, extent: Tensor, bins: Tensor, move: Tensor, size: int) -> Axis:
            origin, extent = origin[:, None, None, None], extent[:, None, None, None]
            bin_extent = extent / pooled_size
            start = bins * bin_extent + origin + move * extent
            return sample_axis(start, bin_extent / samples_per_bin, samples_per_bin, size)

        bins = torch.arange(pooled_size, device=rois.device, dtype=rois.dtype)
        x, y, width, height = self.regions[2:]
        self.x = axis(x, width, bins, moves[:, :, 0], self.width)
        self.y = axis(y, height, bins[:, None], moves[:, :, 1], self.height)
        count = self.x.counted * self.y.counted * self.regions.valid[:, None, None, None]
        self.scale = torch.where(count > 0, 1 / count.clamp(min=1), torch.zeros_like(count))
        planes = source_planes(output_dim, group_size, pooled_size, rois.device)
        self.planes = planes.unflatten(0, (self.classes, self.per_class))

    def chunks(self) -> Iterator[slice]:
        return chunks(len(self.scale), self.planes.numel() * self.x.cells.shape[-1] ** 2)

    def index(self, chunk: slice) -> Tensor:
        """Indices into the flattened map: (r, classes, channels of a class, pooled, pooled, rows, columns)."""
        plane = self.regions.image[chunk, None, None, None, None] * self.channels + self.planes
        rows = plane[..., None] * self.height + self.y.cells[chunk, :, None]
        return rows[..., None] * self.width + self.x.cells[chunk, :, None, ..., None, :]

    def values(self, chunk: slice) -> Tensor:
        """Values of the cells, 0 where none is read: (r, classes, ..., rows, columns)."""
        read = (self.y.weights[chunk, ..., None] != 0) & (self.x.weights[chunk, ..., None, :] != 0)
        read = (read & (self.scale[chunk, ..., None, None] != 0))[:, :, None]
        values = self.cells[self.index(chunk)]
        return torch.where(read, values, torch.zeros_like(values))


def combine(values: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Sums over the last two dimensions, weighted by factors of the rows and columns of each class."""
    return ((values * columns[:, :, None, ..., None, :]).sum(-1) * rows[:, :, None]).sum(-1)


def deform_psroi_pool(input: Tensor, rois: Tensor, offset: Tensor | None, *options: Any) -> Tensor:
    """Forward pass, differentiable by autograd.

    ``rois`` and ``offset`` are in the dtype of sums; ``options`` are the operator's other arguments.
    """
    _, output_dim, _, pooled, *_ = options
    outputs = [rois.new_zeros(0, output_dim, pooled, pooled)]
    if input.numel() == 0:
        return input.new_zeros(rois.shape[0], output_dim, pooled, pooled)
    problem = Problem(input, rois, offset, *options)
    for chunk in problem.chunks():
        sums = combine(problem.values(chunk), problem.y.weights[chunk], problem.x.weights[chunk])
        outputs.append((sums * problem.scale[chunk, :, None]).flatten(1, 2))
    return torch.cat(outputs).to(input.dtype)


def deform_psroi_pool_backward(
    grad_output: Tensor, input: Tensor, rois: Tensor, offset: Tensor | None, *options: Any
) -> tuple[Tensor, Tensor]:
    """Gradients of input and offset; an empty tensor for each that is not needed."""
    *options_forward, need_input, need_offset = options
    grad_input = torch.zeros_like(input) if need_input else input.new_empty(0)
    grad_offset = rois.new_empty(0)
    if need_offset and offset is not None:
        grad_offset = offset.new_zeros(offset.shape)
    if input.numel() == 0:
        return grad_input, grad_offset
    problem = Problem(input, rois, offset, *options_forward)
    y, x = problem.y, problem.x
    sums = torch.zeros_like(problem.cells)
    extents = torch.stack([problem.regions.width, problem.regions.height], 1)[:, None, :, None]
    for chunk in problem.chunks():
        grad = grad_output[chunk].to(rois.dtype).unflatten(1, (problem.classes, problem.per_class))
        grad = grad * problem.scale[chunk, :, None]
        rows, columns = y.weights[chunk], x.weights[chunk]
        if need_input:
            spread = (grad[..., None] * rows[:, :, None])[..., None] * columns[:, :, None, ..., None, :]
            sums.index_add_(0, problem.index(chunk).flatten(), spread.flatten())
        if need_offset:
            values = problem.values(chunk)
            moves = [combine(values, rows, x.slopes[chunk]), combine(values, y.slopes[chunk], columns)]
            moved = torch.stack([(grad * move).sum(2) for move in moves], 2).flatten(3)
            moved = moved * (problem.offset_std * extents[chunk])
            grad_offset[chunk].flatten(2).index_add_(2, problem.part_of_bin, moved.flatten(1, 2))
    if need_input:
        grad_input.copy_(sums.view(input.shape))
    return grad_input, grad_offset
