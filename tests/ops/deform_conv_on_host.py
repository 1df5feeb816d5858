"""Runs the CUDA kernels of the deformable convolution on the host: forward, backward, split products."""

from typing import Any

import torch

from dcn_det.ops.reference import deform_conv as reference
from tests.ops.cuda_on_host import InOut, Out
from tests.ops.test_deform_conv import gradients

CAPACITY = 11  # output positions per tile: not a multiple of a batch, fewer than an image has
HALVES = [torch.float16, torch.bfloat16]
# Sizes that occupy one lane of four, more than a warp, and wide accesses with 4, 8 and 32 lanes.
SIZES: dict[str, dict[str, Any]] = {
    "one channel to a group": {"groups": 6, "offset_groups": 6, "out_channels": 6},
    "4 lanes": {"channels": 32, "offset_groups": 4, "groups": 2, "size": (5, 4)},
    "8 lanes": {"channels": 64, "offset_groups": 1, "groups": 2, "size": (4, 4), "kernel": (2, 2), "mask": True},
    "32 lanes": {"channels": 256, "size": (3, 4), "kernel": (2, 2), "mask": True},
}


PARTS = 3  # bfloat16 parts of a float32 number
COPIES = {"left": 6, "right": 6, "chunked right": 5}


class Problem:
    """A call as the kernels see it, and the numbers that :class:`Host` passes on with every launch."""

    def __init__(self, arguments: dict, border: str, grad: torch.Tensor, capacity: int) -> None:
        input, weight = arguments["input"], arguments["weight"]
        self.dtype, self.capacity = input.dtype, capacity
        self.sums = torch.float64 if input.dtype == torch.float64 else torch.float32
        self.offset = arguments["offset"].to(self.sums)
        self.mask = None if arguments["mask"] is None else arguments["mask"].to(self.sums)
        self.batch, channels, *size = input.shape
        self.out_channels, self.group_channels, *self.kernel = weight.shape
        self.groups, taps = channels // self.group_channels, self.kernel[0] * self.kernel[1]
        self.out_size = self.offset.shape[2:]
        self.positions = self.batch * self.out_size[0] * self.out_size[1]
        self.tiles = [(at, min(capacity, self.positions - at)) for at in range(0, self.positions, capacity)]
        steps = [step for name in ("stride", "padding", "dilation") for step in arguments[name]]
        sizes = (self.batch, channels, *size, self.out_channels, *self.out_size, *self.kernel, *steps)
        self.shape = (*sizes, self.groups, self.offset.shape[1] // (2 * taps), int(border == "dcn_v1"))
        self.width, self.depth = self.out_channels // self.groups, taps * self.group_channels
        self.features = input.permute(0, 2, 3, 1).contiguous()
        self.matrices = weight.permute(0, 2, 3, 1).reshape(self.groups, self.width, self.depth).contiguous()
        self.grad = grad.contiguous()
        rows = grad.permute(0, 2, 3, 1).reshape(self.positions, self.groups, self.width)
        self.rows = rows.transpose(0, 1).contiguous()
        planes = [(plane, self._strides(plane)) for plane in (self.offset, self.mask)]
        self.reads = (self.features, *planes[0], *planes[1])

    @staticmethod
    def _strides(plane: torch.Tensor | None) -> tuple[int, ...] | None:
        return None if plane is None else (plane.stride(0), plane.stride(1), plane.stride(3))

    def output_of(self, groups: torch.Tensor) -> torch.Tensor:
        """Arranges (groups, positions, width) as (batch, out_channels, height, width)."""
        rows = groups.transpose(0, 1).reshape(self.batch, *self.out_size, self.out_channels)
        return rows.permute(0, 3, 1, 2)


def whole_columns(host, problem: Problem, how: tuple, seed: int) -> torch.Tensor:
    """Returns the columns of all tiles, in the dtype of the input."""
    shape = (len(problem.tiles), problem.groups, problem.capacity, problem.depth)
    columns = torch.full(shape, torch.nan, dtype=problem.dtype)
    for tile, (first, count) in zip(columns, problem.tiles):
        place = (Out(tile), problem.capacity, first, count)
        host("deform_conv_fill", problem.dtype, problem.shape, *how, *problem.reads, *place, seed=seed)
    return columns


def on_host(
    host,
    arguments: dict,
    border: str,
    grad: torch.Tensor,
    *,
    capacity: int = CAPACITY,
    wide: bool = True,
    blocks: int = 0,
    deterministic: bool = False,
    seed: int = 0,
    needs: tuple[str, ...] = ("input", "offset", "mask", "weight"),
) -> dict:
    """Returns the output and the gradients, tile by tile as in the operator, with products by PyTorch."""
    problem = Problem(arguments, border, grad, capacity)
    columns = whole_columns(host, problem, (wide, blocks), seed)
    output = torch.empty(problem.groups, problem.positions, problem.width, dtype=problem.dtype)
    grad_columns = torch.zeros_like(columns)
    for tile, (first, count) in enumerate(problem.tiles):
        here = slice(first, first + count)
        output[:, here] = columns[tile, :, :count] @ problem.matrices.transpose(1, 2)
        grad_columns[tile, :, :count] = problem.rows[:, here] @ problem.matrices
    kept, before = "weight" in needs, grad_columns.clone()
    how = (wide, blocks, deterministic, False)
    found = sweep_on_host(host, problem, grad_columns, grad_columns if kept else None, how, needs, seed)
    for tile, (_, count) in enumerate(problem.tiles):
        assert torch.equal(grad_columns[tile, :, :count], (columns if kept else before)[tile, :, :count])
    whole = grad_columns.transpose(0, 1).flatten(1, 2)[:, : problem.positions]
    grad_matrices = problem.rows.transpose(1, 2).to(problem.sums) @ whole.to(problem.sums)
    return results_of(problem, arguments, output, grad_matrices, found, needs)


def sweep_on_host(
    host,
    problem: Problem,
    grad_columns: torch.Tensor,
    kept: torch.Tensor | None,
    how: tuple,
    needs: tuple[str, ...],
    seed: int,
) -> dict:
    """Returns the gradients of input, offset and mask; writes the columns to ``kept``."""
    grad_input = torch.zeros_like(problem.features, dtype=problem.sums)
    grads = {
        "input": grad_input,
        "offset": torch.full_like(problem.offset, torch.nan),
        "mask": None if problem.mask is None else torch.full_like(problem.mask, torch.nan),
    }
    wanted = {name: value if name in needs else None for name, value in grads.items()}
    results = (
        InOut(grad_input) if "input" in needs else None,
        *[None if value is None else Out(value) for value in (wanted["offset"], wanted["mask"])],
    )
    arguments = (*problem.reads, problem.grad, problem.matrices, InOut(grad_columns), problem.capacity, *results)
    target = None if kept is None else InOut(kept)
    host("deform_conv_sweep", problem.dtype, problem.shape, *how, *arguments, target, seed=seed)
    return grads | {"input": grad_input.permute(0, 3, 1, 2)}


def results_of(
    problem: Problem,
    arguments: dict,
    output: torch.Tensor,
    grad_matrices: torch.Tensor,
    grads: dict,
    needs: tuple[str, ...],
) -> dict:
    grad_weight = grad_matrices.reshape(problem.out_channels, *problem.kernel, problem.group_channels)
    found = {"output": problem.output_of(output), **grads, "weight": grad_weight.permute(0, 3, 1, 2)}
    if arguments.get("bias") is not None:
        found["output"] = found["output"] + arguments["bias"][:, None, None]
    return {name: value for name, value in found.items() if name in ("output", *needs) and value is not None}


def parts_on_host(host, matrix: torch.Tensor, kind: str, blocks: int = 0) -> torch.Tensor:
    """Returns copies of the bfloat16 parts of (rows, columns), as products need them: (rows, copies, columns)."""
    copies = matrix.new_empty(matrix.shape[0], COPIES[kind], matrix.shape[1], dtype=torch.bfloat16)
    host("split_parts", list(COPIES).index(kind), blocks, matrix, Out(copies), *matrix.shape)
    return copies


def sum_on_host(host, products: list[torch.Tensor], out: torch.Tensor, bias=None, more=False) -> None:
    """Sets ``out``, or adds to it, the sum of matrices."""
    stacked, target = torch.stack(products), InOut(out) if more else Out(out)
    host("add_products", 0, stacked, *stacked.shape, bias, more, target, out.stride(0))


def split_on_host(
    host,
    arguments: dict,
    border: str,
    grad: torch.Tensor,
    *,
    capacity: int = CAPACITY,
    wide: bool = True,
    seed: int = 0,
) -> dict:
    """Returns the output and the gradients computed with bfloat16 parts, as in the operator."""
    problem = Problem(arguments, border, grad, capacity)
    groups, width, depth = problem.groups, problem.width, problem.depth
    right = parts_on_host(host, problem.matrices.reshape(groups * width, depth), "chunked right")
    right = right.reshape(groups, width, 5 * depth).float()
    output = torch.full((groups, problem.positions, width), torch.nan)
    for first, count in problem.tiles:
        columns = torch.full((groups, capacity, PARTS * depth), torch.nan, dtype=torch.bfloat16)
        place = (Out(columns), capacity, True, first, count)
        host("deform_conv_split_fill", problem.shape, wide, 0, *problem.reads, *place, seed=seed)
        for group in range(groups):
            samples, matrix = columns[group, :count].float(), right[group]
            factors = [(2, 0, 1), (0, 0, 2), (1, 2, 2), (2, 4, 1)]  # first part of each, number of parts
            products = [
                samples[:, a * depth : (a + n) * depth] @ matrix[:, b * depth : (b + n) * depth].T
                for a, b, n in factors
            ]
            sum_on_host(host, products, output[group, first : first + count])

    left = parts_on_host(host, problem.rows.reshape(-1, width), "left")
    left = left.reshape(groups, problem.positions, 6, width).float()
    right = parts_on_host(host, problem.matrices.reshape(groups, -1), "right").reshape(groups, 6 * width, depth)
    grad_columns = torch.zeros(len(problem.tiles), groups, capacity, depth)
    for tile, (first, count) in enumerate(problem.tiles):
        grad_columns[tile, :, :count] = left[:, first : first + count].flatten(2) @ right.float()
    kept = torch.zeros(len(problem.tiles), groups, PARTS, capacity, depth, dtype=torch.bfloat16)
    needs = ("input", "offset", "mask", "weight")
    grads = sweep_on_host(host, problem, grad_columns, kept, (wide, 0, False, True), needs, seed)
    grad_matrices = torch.zeros(groups, width, depth)
    for tile, (first, count) in enumerate(problem.tiles):
        for group in range(groups):
            rows, parts = left[group, first : first + count], kept[tile, group, :, :count].float()
            pairs = [(5, 2), (1, 1), (2, 1), (0, 2), (1, 2), (2, 0)]  # part of the gradients, of the columns
            products = [rows[:, a].T @ parts[b] for a, b in pairs]
            sum_on_host(host, products, grad_matrices[group], more=tile > 0)
    return results_of(problem, arguments, output, grad_matrices, grads, needs)


def expected_of(arguments: dict, border: str, grad: torch.Tensor) -> dict:
    """Returns the reference in float64 for the same values."""

    def operator(input, offset, weight, bias=None, mask=None, **options):
        return reference.deform_conv2d(input, offset, weight, bias, mask, *options.values())

    double = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
    found = gradients(operator, {**double, "border": border}, grad.double())
    return {name: value for name, value in found.items() if name != "bias"}


def grad_for(arguments: dict, seed: int = 7) -> torch.Tensor:
    batch, _, *out_size = arguments["offset"].shape
    shape = (batch, arguments["weight"].shape[0], *out_size)
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return grad.to(arguments["input"].dtype)
