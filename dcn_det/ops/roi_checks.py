"""Checks of the RoI pooling operators' arguments, run before any tier so that all raise the same errors."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dcn_det.ops.checks import LARGEST_INT, fault_of, is_int, is_number, sizes_are_known

LARGEST_SIZE = 1 << 14


class Checker:
    """Checks the arguments of one operator; errors give the argument, its value and what was expected."""

    def __init__(self, operator: str) -> None:
        self.operator = operator

    def error(self, name: str, got: str, expected: str) -> ValueError:
        return ValueError(f"{self.operator}: {name} is {got}; expected {expected}")

    def sizes(self, **sizes: int) -> None:
        for name, size in sizes.items():
            if not is_int(size) or not 1 <= size <= LARGEST_SIZE:
                raise self.error(name, repr(size), f"an int from 1 to {LARGEST_SIZE}")

    def scales(self, spatial_scale: float, offset_std: float = 0.0) -> None:
        if not is_number(spatial_scale) or not 0 < spatial_scale < math.inf:
            raise self.error("spatial_scale", repr(spatial_scale), "a positive number, such as 1 / stride")
        if not is_number(offset_std) or not -math.inf < offset_std < math.inf:
            raise self.error("offset_std", repr(offset_std), "a finite number")

    def tensor(self, name: str, tensor: Tensor) -> None:
        fault = fault_of(tensor)
        if fault is not None:
            raise self.error(name, *fault)

    def features(self, input: Tensor, channels: int | None = None, meaning: str = "") -> None:
        self.tensor("input", input)
        if input.dim() != 4:
            raise self.error("input", f"of shape {tuple(input.shape)}", "4 dimensions (B, C, H, W)")
        if channels is not None and input.shape[1] != channels:
            raise self.error("input", f"of {input.shape[1]} channels", f"{channels}, {meaning}")
        if sizes_are_known() and input.shape[2] * input.shape[3] > LARGEST_INT:
            raise self.error("input", f"of shape {tuple(input.shape)}", f"at most {LARGEST_INT} cells in a map")

    def rois(self, rois: Tensor, input: Tensor) -> None:
        self.tensor("rois", rois)
        if rois.dim() != 2 or rois.shape[1] != 5:
            raise self.error("rois", f"of shape {tuple(rois.shape)}", "(R, 5): image index, x1, y1, x2, y2")
        self._on_device("rois", rois, input, "the input")
        if rois.device.type != "cpu" or not _has_values(rois) or rois.shape[0] == 0:
            return
        index = rois[:, 0]
        wrong = ~((index >= 0) & (index < input.shape[0]))
        if wrong.any():
            row = int(wrong.nonzero()[0])
            raise self.error(
                "rois",
                f"of image {index[row].item():g} in row {row}",
                f"one of the input's {input.shape[0]} images",
            )

    def offset(self, offset: Tensor, rois: Tensor, input: Tensor, output_dim: int, part_size: int) -> None:
        self.tensor("offset", offset)
        expected = (rois.shape[0], "2 * K", part_size, part_size)
        shape = tuple(offset.shape)
        if len(shape) != 4 or (shape[0], *shape[2:]) != (expected[0], *expected[2:]):
            raise self.error("offset", f"of shape {shape}", "({}, {}, {}, {})".format(*expected))
        if shape[1] == 0 or shape[1] % 2 or output_dim % (shape[1] // 2):
            raise self.error("offset", f"of {shape[1]} channels", f"2 * K, K a divisor of output_dim {output_dim}")
        self._on_device("offset", offset, input, "the input")

    def cast_coordinates(self, input: Tensor, **tensors: Tensor | None) -> None:
        """Checks the dtypes that kernels expect of coordinates; the public function casts to them."""
        expected = coordinate_dtype(input)
        for name, tensor in tensors.items():
            if tensor is not None and tensor.dtype != expected:
                raise self.error(name, str(tensor.dtype), f"{expected} for features of {input.dtype}")

    def grad(self, grad_output: Tensor, rois: Tensor, **more: Tensor) -> None:
        """Checks the output's gradient, and that the regions and ``more`` tensors of the call are on its device."""
        for name, tensor in {"rois": rois, **more}.items():
            self._on_device(name, tensor, grad_output, "grad_output")
        shape = tuple(grad_output.shape)
        if len(shape) != 4 or shape[0] != rois.shape[0] or shape[2] != shape[3]:
            raise self.error("grad_output", f"of shape {shape}", f"({rois.shape[0]}, C, P, P)")

    def _on_device(self, name: str, tensor: Tensor, first: Tensor, first_name: str) -> None:
        if tensor.device != first.device:
            raise self.error(name, f"on {tensor.device}", f"{first.device}, like {first_name}")


def coordinate_dtype(input: Tensor) -> torch.dtype:
    """Dtype in which regions and offsets are read: float64 for float64 features, else float32."""
    return torch.float64 if input.dtype == torch.float64 else torch.float32


def _has_values(tensor: Tensor) -> bool:
    """Whether values can be read: not during graph capture."""
    return not torch.compiler.is_compiling() and type(tensor) in (Tensor, torch.nn.Parameter)
