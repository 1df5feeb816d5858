"""Checks of the deformable convolution's arguments, run before any tier so that all raise the same errors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dcn_det.ops.checks import LARGEST_INT, fault_of, has_autocast, is_int, sizes_are_known

BORDERS = ("zeros", "dcn_v1")
HALF_DTYPES = (torch.float16, torch.bfloat16)


def pair_of(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    """Returns an int for both axes, or (y, x), as a pair; ``padding`` may be 0, the others are at least 1."""
    least = 0 if name == "padding" else 1
    pair = tuple(value) if isinstance(value, Sequence) else (value, value)
    if len(pair) != 2 or not all(is_int(v) and v >= least for v in pair):
        raise _error(name, repr(value), f"one or two ints, each at least {least}")
    if sizes_are_known() and max(pair) > LARGEST_INT:
        raise _error(name, repr(value), f"at most {LARGEST_INT}")
    return pair[0], pair[1]


def check_border(border: str) -> None:
    if border not in BORDERS:
        raise _error("border", repr(border), f"one of {', '.join(map(repr, BORDERS))}")


def check_arguments(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    border: str,
) -> None:
    """Raises ValueError unless ``deform_conv2d`` can run; gives the argument, its value and what was expected."""
    check_border(border)
    tensors = {"input": input, "offset": offset, "weight": weight}
    for name, tensor in (("bias", bias), ("mask", mask)):
        if tensor is not None:
            tensors[name] = tensor
    _check_kinds(tensors, input)
    out_size = _check_input(input, weight, stride, padding, dilation)
    taps = weight.shape[2] * weight.shape[3]
    pairs = offset.shape[1] // (2 * taps)
    if pairs == 0 or offset.shape[1] % (2 * taps) or input.shape[1] % pairs:
        raise _error(
            "offset",
            f"of {offset.shape[1]} channels",
            f"{2 * taps} (y and x of {taps} taps) times a divisor of the input's {input.shape[1]} channels",
        )
    shape = (input.shape[0], offset.shape[1], *out_size)
    _check_shape("offset", offset, shape, "the input's batch and the output's height and width")
    if mask is not None:
        _check_shape("mask", mask, (shape[0], pairs * taps, *out_size), "one factor per pair of offsets")
    if bias is not None:
        _check_shape("bias", bias, (weight.shape[0],), "one per output channel")


def _check_kinds(tensors: dict[str, Tensor], input: Tensor) -> None:
    """Checks dimensions, devices and dtypes."""
    for name, tensor in tensors.items():
        fault = fault_of(tensor)
        if fault is not None:
            raise _error(name, *fault)
    device_type = input.device.type
    autocast = has_autocast(device_type) and torch.is_autocast_enabled(device_type)
    for name, tensor in tensors.items():
        dimensions = 1 if name == "bias" else 4
        if tensor.dim() != dimensions:
            raise _error(name, f"of shape {tuple(tensor.shape)}", f"{dimensions} dimension{'s'[: dimensions - 1]}")
        if tensor.device != input.device:
            raise _error(name, f"on {tensor.device}", f"{input.device}, like the input")
        wide_offset = name == "offset" and tensor.dtype == torch.float32 and input.dtype in HALF_DTYPES
        if tensor.dtype != input.dtype and not autocast and not wide_offset:
            raise _error(name, str(tensor.dtype), f"{input.dtype}, like the input")


def _check_input(
    input: Tensor,
    weight: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> tuple[int, int]:
    """Checks the input against the weight; returns the output's height and width."""
    if 0 in input.shape[1:]:
        raise _error("input", f"of shape {tuple(input.shape)}", "no dimension of size 0 except the batch")
    if 0 in weight.shape:
        raise _error("weight", f"of shape {tuple(weight.shape)}", "no dimension of size 0")
    channels, out_channels, group_channels = input.shape[1], weight.shape[0], weight.shape[1]
    if channels % group_channels:
        raise _error("input", f"of {channels} channels", f"a multiple of {group_channels}, the channels of the weight")
    if out_channels % (channels // group_channels):
        groups = channels // group_channels
        raise _error("weight", f"of {out_channels} output channels", f"a multiple of {groups}, the groups")
    out_size = []
    for axis in range(2):
        extent = dilation[axis] * (weight.shape[2 + axis] - 1) + 1
        padded = input.shape[2 + axis] + 2 * padding[axis]
        side = "height" if axis == 0 else "width"
        if sizes_are_known() and padded > LARGEST_INT:
            raise _error("input", f"of {side} {padded} with padding", f"at most {LARGEST_INT}")
        if padded < extent:
            raise _error("input", f"of {side} {padded} with padding", f"at least {extent}, the kernel's extent")
        out_size.append((padded - extent) // stride[axis] + 1)
    return out_size[0], out_size[1]


def _check_shape(name: str, tensor: Tensor, expected: tuple[int, ...], meaning: str) -> None:
    if tuple(tensor.shape) != expected:
        raise _error(name, f"of shape {tuple(tensor.shape)}", f"{expected}: {meaning}")


def _error(name: str, got: str, expected: str) -> ValueError:
    return ValueError(f"deform_conv2d: {name} is {got}; expected {expected}")
