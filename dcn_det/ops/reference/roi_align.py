"""RoI align in plain PyTorch operations.

The samples of a bin form a grid, so that a bin is a sum of cells, each weighted by a factor of its row and a
factor of its column, which depend only on the row and the column of the bin.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dcn_det.ops.reference.roi_pooling import Windows, span, valid_rois

MOST_SAMPLES = 1 << 24


class Axis(NamedTuple):
    """The cells [begin, end) of each bin, (R, pooled), and the weights of all cells, (R, pooled, size)."""

    begin: Tensor
    end: Tensor
    weights: Tensor

    def in_windows(self) -> Tensor:
        """Weights of ``begin``, ``begin + 1``, ...: (R, pooled, cells of the largest bin)."""
        cells = span(self.begin, self.end).clamp(max=self.weights.shape[-1] - 1)
        return self.weights.gather(-1, cells)


def sample_axis(first: Tensor, last: Tensor, pooled: int, sampling_ratio: int, aligned: bool, size: int) -> Axis:
    """Bins between corners in cells, both (R,), over cells [0, size)."""
    shift = 0.5 if aligned else 0.0
    start = first - shift
    extent = last - shift - start
    if not aligned:
        extent = extent.clamp(min=1)
    bin_extent = extent[:, None, None] / pooled
    bins = torch.arange(pooled, device=first.device, dtype=first.dtype)[:, None]
    bin_start = start[:, None, None] + bins * bin_extent
    if sampling_ratio > 0:
        samples = torch.full_like(bin_extent, sampling_ratio)
        begin, end = torch.zeros_like(bin_start), samples.expand_as(bin_start)
    else:
        # Of huge regions, only the samples near the map are visited.
        samples = bin_extent.ceil().nan_to_num(0).clamp(0, MOST_SAMPLES)
        step, before = bin_extent / samples, -1 - bin_start
        near = (before / step - 1.5, (before + size + 1) / step + 1.5)
        begin, end = (value.nan_to_num(0).clamp(min=0).minimum(samples).trunc() for value in near)
    sample = span(begin[..., 0], end[..., 0].clamp(min=0)).to(first.dtype)
    position = bin_start + (sample + 0.5) * bin_extent / samples
    reads = (sample < end) & (position >= -1) & (position <= size)
    position = torch.where(reads, position, torch.zeros_like(position)).clamp(0, size - 1)
    lower, upper = position.floor(), position.ceil()
    fraction = position - lower
    weights = position.new_zeros(*position.shape[:2], size)
    for cell, weight in ((lower, 1 - fraction), (upper, fraction)):
        weights.scatter_add_(-1, cell.long(), torch.where(reads, weight / samples, torch.zeros_like(weight)))
    read = (weights > 0).to(torch.int8)
    found = read.amax(-1) > 0
    begin = torch.where(found, read.argmax(-1), 0)
    return Axis(begin, torch.where(found, size - read.flip(-1).argmax(-1), 0), weights)


def axes(
    rois: Tensor,
    batch: int,
    height: int,
    width: int,
    spatial_scale: float,
    pooled: int,
    sampling_ratio: int,
    aligned: bool,
) -> tuple[Windows, Axis, Axis]:
    """Cells of every bin, and the factors of their rows and columns."""
    valid = valid_rois(rois, batch)
    rois = torch.where(valid[:, None], rois, torch.zeros_like(rois))
    x1, y1, x2, y2 = (rois[:, 1:] * spatial_scale).unbind(1)
    y = sample_axis(y1, y2, pooled, sampling_ratio, aligned, height)
    x = sample_axis(x1, x2, pooled, sampling_ratio, aligned, width)
    return Windows(valid, rois[:, 0].long(), y.begin, y.end, x.begin, x.end), y, x


def cell_weights(y: Axis, x: Axis) -> Tensor:
    """Weights of the cells, (R, 1, pooled, pooled, rows, columns)."""
    rows, columns = y.in_windows()[:, None, :, None, :, None], x.in_windows()[:, None, None, :, None, :]
    return rows * columns


def planes_of(channels: int, pooled: int, device: torch.device) -> Tensor:
    return torch.arange(channels, device=device)[:, None, None].expand(-1, pooled, pooled)


def roi_align(
    input: Tensor, rois: Tensor, spatial_scale: float, pooled_size: int, sampling_ratio: int, aligned: bool
) -> Tensor:
    """Forward pass, differentiable by autograd; ``rois`` in the dtype of sums."""
    batch, channels, height, width = input.shape
    output = input.new_zeros(rois.shape[0], channels, pooled_size, pooled_size)
    if input.numel() == 0 or rois.shape[0] == 0:
        return output
    windows, y, x = axes(rois, batch, height, width, spatial_scale, pooled_size, sampling_ratio, aligned)
    planes, weights = planes_of(channels, pooled_size, input.device), cell_weights(y, x)
    for chunk, index, inside in windows.each_chunk(planes, input.shape):
        inside = inside & (weights[chunk] > 0)
        values = input.reshape(-1)[index].to(rois.dtype)
        values = torch.where(inside, values * weights[chunk], torch.zeros_like(values))
        output[chunk] = values.sum((-2, -1)).to(input.dtype)
    return output


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    batch: int,
    height: int,
    width: int,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Gradient of roi_align's input."""
    channels, pooled = grad_output.shape[1:3]
    grad_input = rois.new_zeros(batch, channels, height, width)
    if grad_input.numel() == 0 or grad_output.numel() == 0:
        return grad_input.to(grad_output.dtype)
    windows, y, x = axes(rois, batch, height, width, spatial_scale, pooled, sampling_ratio, aligned)
    planes, weights = planes_of(channels, pooled, grad_output.device), cell_weights(y, x)
    for chunk, index, inside in windows.each_chunk(planes, grad_input.shape):
        spread = grad_output[chunk].to(rois.dtype)[..., None, None] * (weights[chunk] * inside)
        grad_input.view(-1).index_add_(0, index.flatten(), spread.flatten())
    return grad_input.to(grad_output.dtype)
