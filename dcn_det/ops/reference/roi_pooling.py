"""Shared parts of the RoI pooling operators in plain PyTorch, and the operators that pool whole cells.

For each bin of each region, every operator reads a small grid of cells: the product of rows and columns that
depend on the bin but not on the channel. Regions are rows (image, x1, y1, x2, y2) with inclusive corners in
image pixels. A region whose coordinates or extent in cells are not finite, or whose image does not exist, pools
to zero and gives no gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

MIN_EXTENT = 0.1
CHUNK_CELLS = 1 << 22
LARGEST_CELL = float(1 << 28)


class Regions(NamedTuple):
    """Regions in cells of the feature map, all (R,). Invalid ones are small, at the origin of the first image."""

    valid: Tensor
    image: Tensor
    x: Tensor
    y: Tensor
    width: Tensor
    height: Tensor


def round_half_away(values: Tensor) -> Tensor:
    """Rounds halves away from zero, as C's ``round`` does; ``torch.round`` rounds them to even."""
    whole = values.trunc()
    return whole + torch.where((values - whole).abs() >= 0.5, values.sign(), torch.zeros_like(values))


def valid_rois(rois: Tensor, images: int) -> Tensor:
    return (rois[:, 0] >= 0) & (rois[:, 0] < images) & rois[:, 1:].isfinite().all(1)


def read_rois(rois: Tensor, spatial_scale: float, shift: float, images: int) -> Regions:
    """Rounds and scales the corners, adds ``shift`` to both; the bottom-right one is taken at its outer edge."""
    start = round_half_away(rois[:, 1:3]) * spatial_scale + shift
    end = (round_half_away(rois[:, 3:5]) + 1) * spatial_scale + shift
    valid = valid_rois(rois, images) & (end - start).isfinite().all(1)
    none = torch.zeros_like(start)
    start, end = torch.where(valid[:, None], start, none), torch.where(valid[:, None], end, none)
    extent = (end - start).clamp(min=MIN_EXTENT)
    image = torch.where(valid, rois[:, 0], none[:, 0]).long()
    return Regions(valid, image, *start.unbind(1), *extent.unbind(1))


def bin_parts(bins: int, parts: int, device: torch.device) -> Tensor:
    """Index of the part, of ``parts`` equal ones, that holds each of ``bins`` bins."""
    return torch.arange(bins, device=device) * parts // bins


def source_planes(output_dim: int, group: int, pooled: int, device: torch.device) -> Tensor:
    """Input channel of each output channel and bin: (output_dim, pooled, pooled)."""
    part = bin_parts(pooled, group, device)
    first = torch.arange(output_dim, device=device)[:, None, None] * (group * group)
    return first + part[:, None] * group + part


def chunks(regions: int, cells_per_region: int) -> Iterator[slice]:
    """Slices of the regions, of bounded working memory."""
    step = max(1, CHUNK_CELLS // max(1, cells_per_region))
    return (slice(first, first + step) for first in range(0, regions, step))


class Windows(NamedTuple):
    """The cells of each bin: rows [top, bottom) and columns [left, right), all (R, pooled)."""

    valid: Tensor
    image: Tensor
    top: Tensor
    bottom: Tensor
    left: Tensor
    right: Tensor

    def area(self) -> Tensor:
        """(R, pooled, pooled) cells; 0 for the bins of an invalid region."""
        rows, columns = (self.bottom - self.top).clamp(min=0), (self.right - self.left).clamp(min=0)
        return rows[:, :, None] * columns[:, None, :] * self.valid[:, None, None]

    def each_chunk(self, planes: Tensor, shape: torch.Size) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yields slices of regions, their cells' indices into a flattened map of ``shape``, and which of them count.

        ``planes``, (channels, pooled, pooled), gives the input channel of each output channel and bin. Results
        are (r, channels or 1, pooled, pooled, rows, columns), with rows and columns padded to the largest bin;
        the index is 0 where a cell does not count.
        """
        _, channels, height, width = shape
        rows, columns = span(self.top, self.bottom), span(self.left, self.right)
        cells = planes.numel() * rows.shape[-1] * columns.shape[-1]
        for chunk in chunks(len(self.valid), cells):
            y, x = rows[chunk, None, :, None, :, None], columns[chunk, None, None, :, None, :]
            inside = (y < self.bottom[chunk, None, :, None, None, None]) & (
                x < self.right[chunk, None, None, :, None, None]
            )
            inside = inside & self.valid[chunk, None, None, None, None, None]
            plane = (self.image[chunk, None, None, None] * channels + planes)[..., None, None]
            index = (plane * height + y) * width + x
            yield chunk, torch.where(inside, index, torch.zeros_like(index)), inside


def span(begin: Tensor, end: Tensor) -> Tensor:
    """``begin``, ``begin + 1``, ... along a new dimension, long enough to reach every ``end``."""
    longest = max(1, int((end - begin).max())) if begin.numel() else 1
    return begin[..., None] + torch.arange(longest, device=begin.device)


def psroi_windows(rois: Tensor, spatial_scale: float, pooled: int, batch: int, height: int, width: int) -> Windows:
    regions = read_rois(rois, spatial_scale, 0.0, batch)
    bins = torch.arange(pooled, device=rois.device, dtype=rois.dtype)

    def axis(origin: Tensor, extent: Tensor, size: int) -> tuple[Tensor, Tensor]:
        bin_extent, origin = (extent / pooled)[:, None], origin[:, None]
        begin, end = (bins * bin_extent + origin).floor(), ((bins + 1) * bin_extent + origin).ceil()
        return begin.clamp(0, size).long(), end.clamp(0, size).long()

    return Windows(
        regions.valid,
        regions.image,
        *axis(regions.y, regions.height, height),
        *axis(regions.x, regions.width, width),
    )


def psroi_pool(
    input: Tensor, rois: Tensor, spatial_scale: float, output_dim: int, group_size: int, pooled_size: int
) -> Tensor:
    """Forward pass, differentiable by autograd; ``rois`` in the dtype of sums."""
    output = input.new_zeros(rois.shape[0], output_dim, pooled_size, pooled_size)
    if input.numel() == 0:
        return output
    batch, _, height, width = input.shape
    windows = psroi_windows(rois, spatial_scale, pooled_size, batch, height, width)
    planes = source_planes(output_dim, group_size, pooled_size, rois.device)
    area = windows.area().clamp(min=1)
    for chunk, index, inside in windows.each_chunk(planes, input.shape):
        values = input.reshape(-1)[index].to(rois.dtype)
        sums = torch.where(inside, values, torch.zeros_like(values)).sum((-2, -1))
        output[chunk] = (sums / area[chunk, None]).to(input.dtype)
    return output


def psroi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    batch: int,
    height: int,
    width: int,
    spatial_scale: float,
    group_size: int,
) -> Tensor:
    """Gradient of psroi_pool's input."""
    output_dim, pooled = grad_output.shape[1:3]
    grad_input = rois.new_zeros(batch, output_dim * group_size**2, height, width)
    if grad_input.numel() == 0:
        return grad_input.to(grad_output.dtype)
    windows = psroi_windows(rois, spatial_scale, pooled, batch, height, width)
    planes = source_planes(output_dim, group_size, pooled, rois.device)
    share = grad_output.to(rois.dtype) / windows.area().clamp(min=1)[:, None]
    for chunk, index, inside in windows.each_chunk(planes, grad_input.shape):
        spread = share[chunk, ..., None, None] * inside
        grad_input.view(-1).index_add_(0, index.flatten(), spread.flatten())
    return grad_input.to(grad_output.dtype)


def roi_pool_windows(rois: Tensor, spatial_scale: float, pooled: int, batch: int, height: int, width: int) -> Windows:
    """Windows between corners rounded to cells, both inclusive; a region has at least one cell, and bins overlap."""
    valid = valid_rois(rois, batch)
    rois = torch.where(valid[:, None], rois, torch.zeros_like(rois))
    cells = round_half_away(rois[:, 1:] * spatial_scale).clamp(-LARGEST_CELL, LARGEST_CELL).long()
    x1, y1, x2, y2 = cells.unbind(1)
    bins = torch.arange(pooled, device=rois.device, dtype=rois.dtype)

    def axis(first: Tensor, last: Tensor, size: int) -> tuple[Tensor, Tensor]:
        bin_extent = ((last - first + 1).clamp(min=1).to(rois.dtype) / pooled)[:, None]
        begin = (bins * bin_extent).floor().long() + first[:, None]
        end = ((bins + 1) * bin_extent).ceil().long() + first[:, None]
        return begin.clamp(0, size), end.clamp(0, size)

    return Windows(valid, rois[:, 0].long(), *axis(y1, y2, height), *axis(x1, x2, width))


def roi_pool(input: Tensor, rois: Tensor, spatial_scale: float, pooled_size: int) -> tuple[Tensor, Tensor]:
    """Forward pass, differentiable by autograd, and the index of each maximum in its plane; -1 for none."""
    batch, channels, height, width = input.shape
    output = input.new_zeros(rois.shape[0], channels, pooled_size, pooled_size)
    argmax = torch.full(output.shape, -1, dtype=torch.int32, device=input.device)
    if input.numel() == 0:
        return output, argmax
    windows = roi_pool_windows(rois, spatial_scale, pooled_size, batch, height, width)
    planes = torch.arange(channels, device=input.device)[:, None, None].expand(-1, pooled_size, pooled_size)
    empty = windows.area() == 0
    for chunk, index, inside in windows.each_chunk(planes, input.shape):
        values = input.reshape(-1)[index].masked_fill(~inside, -torch.inf).flatten(-2)
        # argmax returns the first of equal values and treats NaN as the largest.
        best = values.argmax(-1, keepdim=True)
        none = empty[chunk, None]
        output[chunk] = values.gather(-1, best).squeeze(-1).masked_fill(none, 0)
        cell = index.flatten(-2).gather(-1, best).squeeze(-1) % (height * width)
        argmax[chunk] = cell.int().masked_fill(none, -1)
    return output, argmax


def roi_pool_backward(grad_output: Tensor, rois: Tensor, argmax: Tensor, batch: int, height: int, width: int) -> Tensor:
    """Gradient of roi_pool's input."""
    channels = grad_output.shape[1]
    grad_input = rois.new_zeros(batch * channels, height * width)
    if grad_input.numel() and grad_output.numel():
        valid = valid_rois(rois, batch)
        image = torch.where(valid, rois[:, 0], torch.zeros_like(rois[:, 0])).long()
        plane = image[:, None] * channels + torch.arange(channels, device=rois.device)
        found = valid[:, None, None, None] & (argmax >= 0)
        index = plane[..., None, None] * (height * width) + torch.where(found, argmax, 0)
        grads = torch.where(found, grad_output.to(rois.dtype), 0)
        grad_input.view(-1).index_add_(0, index.flatten(), grads.flatten())
    return grad_input.view(batch, channels, height, width).to(grad_output.dtype)
