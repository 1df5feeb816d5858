"""Deformable convolution in plain PyTorch operations, one kernel tap at a time.

With features x, output position p and position p_k of tap k in the kernel::

    y(p) = bias + sum over k of weight_k * mask_k(p) * x(p * stride - padding + p_k * dilation + offset_k(p))

where x is interpolated bilinearly between cells (Dai et al., "Deformable Convolutional Networks", 2017,
equations 2 to 4; for the mask, Zhu et al., "Deformable ConvNets v2", 2019, equation 1). ``border`` defines x
beyond the map.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

CORNERS = [(0, 0), (0, 1), (1, 0), (1, 1)]


class Axis(NamedTuple):
    """The two cells around each coordinate, with their weights and the weights' derivatives."""

    cells: tuple[Tensor, Tensor]
    weights: tuple[Tensor, Tensor]
    slopes: tuple[Tensor, Tensor]


class Tap(NamedTuple):
    """The samples of one kernel tap; tensors are (batch, offset groups, positions), one per corner."""

    inside: Tensor
    rows: list[Tensor]  # into the feature table
    weights: list[Tensor]
    slopes_y: list[Tensor]
    slopes_x: list[Tensor]
    modulation: Tensor | None


class Problem:
    """Tensors of a call in the dtype of sums, and the grouping of their channels."""

    def __init__(
        self,
        input: Tensor,
        offset: Tensor,
        weight: Tensor,
        mask: Tensor | None,
        stride: list[int],
        padding: list[int],
        dilation: list[int],
        border: str,
    ) -> None:
        dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
        self.batch, self.channels, self.height, self.width = input.shape
        self.out_channels, self.group_channels, *self.kernel = weight.shape
        self.out_height, self.out_width = offset.shape[2:]
        self.positions = self.out_height * self.out_width
        self.taps = self.kernel[0] * self.kernel[1]
        self.groups = self.channels // self.group_channels
        self.offset_groups = offset.shape[1] // (2 * self.taps)
        self.offset_channels = self.channels // self.offset_groups
        self.stride, self.padding, self.dilation, self.border = stride, padding, dilation, border
        grouped = (self.batch, self.offset_groups, self.taps)
        self.offset = offset.to(dtype).reshape(*grouped, 2, self.out_height, self.out_width)
        self.mask = None if mask is None else mask.to(dtype).reshape(*grouped, self.positions)
        # One row of channels per cell, offset group and image.
        self.table = (
            input.to(dtype)
            .reshape(self.batch, self.offset_groups, self.offset_channels, self.height * self.width)
            .transpose(2, 3)
            .reshape(-1, self.offset_channels)
        )
        self.matrices = weight.to(dtype).reshape(
            self.groups, self.out_channels // self.groups, self.group_channels, self.taps
        )

    def each_tap(self) -> Iterator[Tap]:
        offset, width = self.offset, self.width
        grid_y = torch.arange(self.out_height, device=offset.device, dtype=offset.dtype)[:, None] * self.stride[0]
        grid_x = torch.arange(self.out_width, device=offset.device, dtype=offset.dtype) * self.stride[1]
        maps = torch.arange(self.batch * self.offset_groups, device=offset.device)
        start = maps.view(self.batch, self.offset_groups, 1) * (self.height * width)
        for tap in range(self.taps):
            from_y = tap // self.kernel[1] * self.dilation[0] - self.padding[0]
            from_x = tap % self.kernel[1] * self.dilation[1] - self.padding[1]
            y = (grid_y + from_y + offset[:, :, tap, 0]).flatten(2)
            x = (grid_x + from_x + offset[:, :, tap, 1]).flatten(2)
            inside = reads_map(y, self.height, self.border) & reads_map(x, width, self.border)
            rows = axis_at(torch.where(inside, y, torch.zeros_like(y)), self.height, self.border)
            columns = axis_at(torch.where(inside, x, torch.zeros_like(x)), width, self.border)
            yield Tap(
                inside,
                [start + rows.cells[i] * width + columns.cells[j] for i, j in CORNERS],
                [rows.weights[i] * columns.weights[j] for i, j in CORNERS],
                [rows.slopes[i] * columns.weights[j] for i, j in CORNERS],
                [rows.weights[i] * columns.slopes[j] for i, j in CORNERS],
                None if self.mask is None else self.mask[:, :, tap],
            )

    def read(self, tap: Tap) -> list[Tensor]:
        """Values of the four corners, each (batch, offset groups, positions, channels of an offset group)."""
        outside = ~tap.inside.unsqueeze(-1)
        return [self.table[rows].masked_fill(outside, 0) for rows in tap.rows]

    def columns(self, tap: Tap, corners: list[Tensor]) -> Tensor:
        """Modulated samples as (batch, groups, channels of a group, positions)."""
        samples = weighted_sum(tap.weights, corners)
        if tap.modulation is not None:
            samples = samples * tap.modulation.unsqueeze(-1)
        return samples.transpose(2, 3).reshape(self.batch, self.groups, self.group_channels, self.positions)

    def samples(self, columns: Tensor) -> Tensor:
        """Reverses the reshaping in :meth:`columns`."""
        shape = (self.batch, self.offset_groups, self.offset_channels, self.positions)
        return columns.reshape(shape).transpose(2, 3)


def reads_map(at: Tensor, size: int, border: str) -> Tensor:
    """Whether coordinates read the map; False for NaN."""
    return (at >= 0) & (at < size) if border == "dcn_v1" else (at > -1) & (at < size)


def axis_at(at: Tensor, size: int, border: str) -> Axis:
    """The cells around coordinates that read the map, see :func:`reads_map`."""
    low = at.detach().floor()
    first = low.long()
    fraction = at - low
    none, one = torch.zeros_like(fraction), torch.ones_like(fraction)
    has_first, has_second = first >= 0, first + 1 < size
    falling = torch.where(has_first, 1 - fraction, none)
    falling_slope = torch.where(has_first, -one, none)
    if border == "dcn_v1":  # the last row or column is repeated
        falling = torch.where(has_second, falling, one)
        falling_slope = torch.where(has_second, falling_slope, none)
    return Axis(
        (first.clamp(0, size - 1), (first + 1).clamp(0, size - 1)),
        (falling, torch.where(has_second, fraction, none)),
        (falling_slope, torch.where(has_second, one, none)),
    )


def weighted_sum(factors: list[Tensor], corners: list[Tensor]) -> Tensor:
    total = factors[0].unsqueeze(-1) * corners[0]
    for factor, corner in zip(factors[1:], corners[1:]):
        total = total + factor.unsqueeze(-1) * corner
    return total


def empty_in_layout_of(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """An empty tensor, in channels-last memory if ``like`` is, else contiguous."""
    channels_last = like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous()
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format)


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    border: str,
    split: bool = False,
) -> Tensor:
    """Forward pass, differentiable by autograd; takes the arguments of the operator, of which it ignores ``split``."""
    problem = Problem(input, offset, weight, mask, stride, padding, dilation, border)
    group_outputs = problem.out_channels // problem.groups
    output = problem.table.new_zeros(problem.batch, problem.groups, group_outputs, problem.positions)
    for k, tap in enumerate(problem.each_tap()):
        output = output + problem.matrices[..., k] @ problem.columns(tap, problem.read(tap))
    output = output.reshape(problem.batch, problem.out_channels, problem.out_height, problem.out_width)
    if bias is not None:
        output = output + bias.to(output.dtype)[:, None, None]
    return empty_in_layout_of(input, tuple(output.shape)).copy_(output)


def deform_conv2d_backward(
    grad_output: Tensor,
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    border: str,
    need_input: bool,
    need_offset: bool,
    need_weight: bool,
    need_mask: bool,
    split: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of input, offset, weight and mask; an empty tensor for each that is not needed."""
    problem = Problem(input, offset, weight, mask, stride, padding, dilation, border)
    group_outputs = problem.out_channels // problem.groups
    grad = grad_output.to(problem.table.dtype)
    grad = grad.reshape(problem.batch, problem.groups, group_outputs, problem.positions)
    grad_table, grad_matrices = torch.zeros_like(problem.table), torch.zeros_like(problem.matrices)
    grad_offset = torch.zeros_like(problem.offset).flatten(4)
    grad_mask = grad_offset.new_zeros(grad_offset[:, :, :, 0].shape)
    for k, tap in enumerate(problem.each_tap()):
        corners = problem.read(tap)
        if need_weight:
            columns = problem.columns(tap, corners)
            grad_matrices[..., k] = (grad @ columns.transpose(2, 3)).sum(0)
        if not (need_input or need_offset or need_mask):
            continue
        grad_samples = problem.samples(problem.matrices[..., k].transpose(1, 2) @ grad)
        if need_mask:
            grad_mask[:, :, k] = (grad_samples * weighted_sum(tap.weights, corners)).sum(-1)
        if tap.modulation is not None:
            grad_samples = grad_samples * tap.modulation.unsqueeze(-1)
        grad_samples = grad_samples.masked_fill(~tap.inside.unsqueeze(-1), 0)
        if need_offset:
            grad_offset[:, :, k, 0] = (grad_samples * weighted_sum(tap.slopes_y, corners)).sum(-1)
            grad_offset[:, :, k, 1] = (grad_samples * weighted_sum(tap.slopes_x, corners)).sum(-1)
        if need_input:
            for rows, weights in zip(tap.rows, tap.weights):
                grad_table.index_add_(0, rows.flatten(), (weights.unsqueeze(-1) * grad_samples).flatten(0, 2))

    def result(needed: bool, like: Tensor | None, values: Tensor) -> Tensor:
        if not needed or like is None:
            return input.new_empty(0)
        return empty_in_layout_of(like, tuple(like.shape)).copy_(values.reshape(like.shape))

    cells = problem.height * problem.width
    grad_input = grad_table.view(problem.batch, problem.offset_groups, cells, problem.offset_channels)
    return (
        result(need_input, input, grad_input.transpose(2, 3)),
        result(need_offset, offset, grad_offset),
        result(need_weight, weight, grad_matrices),
        result(need_mask, mask, grad_mask),
    )
