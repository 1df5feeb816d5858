"""The CUDA kernels of the deformable convolution, run without a GPU: values, gradients and memory accesses."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dcn_det.ops.reference import deform_conv as reference
from tests.ops.cuda_on_host import InOut, Out
from tests.ops.test_deform_conv import CASES, GOLDENS, assert_near, gradients, make_case

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


@pytest.mark.parametrize("border", ["zeros", "dcn_v1"])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_reference(host, case, border):
    arguments = make_case(**CASES[case], seed=1)
    grad = grad_for(arguments)
    assert_near(on_host(host, arguments, border, grad), expected_of(arguments, border, grad), 1e-12)


@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.stem)
def test_golden_vectors(host, path):
    data = np.load(path)
    meta = json.loads(str(data["meta"]))
    arguments: dict[str, Any] = {name: torch.from_numpy(data[name]) for name in ("input", "offset", "weight")}
    arguments |= {name: tuple(meta[name]) for name in ("stride", "padding", "dilation")} | {"mask": None}
    found = on_host(host, arguments, "dcn_v1", torch.from_numpy(data["grad_output"]), capacity=150)
    names = {"output": "output", "input": "grad_input", "offset": "grad_offset", "weight": "grad_weight"}
    assert_near(found, {key: torch.from_numpy(data[name]) for key, name in names.items()}, 2e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("case", SIZES)
@pytest.mark.parametrize("wide", [True, False], ids=["wide", "narrow"])
def test_every_dtype_and_width(host, case, dtype, wide):
    arguments = make_case(**SIZES[case], dtype=dtype)
    grad = grad_for(arguments)
    tolerance = {torch.float64: 1e-12, torch.float32: 2e-6}.get(dtype, 2 * torch.finfo(dtype).eps)
    expected = expected_of(arguments, "zeros", grad)
    assert_near(on_host(host, arguments, "zeros", grad, wide=wide), expected, tolerance)


@pytest.mark.parametrize("blocks", [1, 3])
def test_few_blocks_stride_over_the_work(host, blocks):
    arguments = make_case(mask=True, offset_groups=2)
    grad = grad_for(arguments)
    found = on_host(host, arguments, "zeros", grad, capacity=200, blocks=blocks)
    assert_near(found, expected_of(arguments, "zeros", grad), 1e-12)


def test_offsets_beyond_the_map_are_not_read(host):
    arguments = make_case(mask=True, offset_groups=2)
    wild = torch.rand(arguments["offset"].shape, generator=torch.Generator().manual_seed(3)) < 0.3
    values = torch.tensor([float("nan"), float("inf"), float("-inf"), 1e30, -1e30, 3e9, -3e9]).double()
    choice = torch.arange(wild.numel()).reshape(wild.shape) % len(values)
    arguments["offset"] = torch.where(wild, values[choice], arguments["offset"])
    grad = grad_for(arguments)
    for border in ("zeros", "dcn_v1"):
        found = on_host(host, arguments, border, grad)
        assert_near(found, expected_of(arguments, border, grad), 1e-12)
        assert not found["offset"][wild].any()


@given(st.data())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_any_sizes(host, data):
    def pair(low, high):
        return data.draw(st.tuples(st.integers(low, high), st.integers(low, high)))

    groups, offset_groups = data.draw(st.tuples(st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 4])))
    kernel, dilation, padding = pair(1, 3), pair(1, 2), pair(0, 2)
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel)]
    size = tuple(max(s - 2 * p, 1) + extra for s, p, extra in zip(spans, padding, pair(0, 4)))
    dtype = data.draw(st.sampled_from([torch.float64, torch.float32]))
    arguments = make_case(
        batch=data.draw(st.integers(1, 3)),
        channels=4 * data.draw(st.integers(1, 5)),
        out_channels=groups * data.draw(st.integers(1, 2)),
        size=size,
        kernel=kernel,
        stride=pair(1, 2),
        padding=padding,
        dilation=dilation,
        groups=groups,
        offset_groups=offset_groups,
        mask=data.draw(st.booleans()),
        spread=data.draw(st.sampled_from([0.0, 0.3, 2.0, 9.0])),
        dtype=dtype,
        seed=data.draw(st.integers(0, 99)),
    )
    border, grad = data.draw(st.sampled_from(["zeros", "dcn_v1"])), grad_for(arguments)
    how = {"capacity": data.draw(st.integers(1, 40)), "wide": data.draw(st.booleans())}
    how |= {"deterministic": data.draw(st.booleans()), "seed": data.draw(st.integers(0, 9))}
    expected = expected_of(arguments, border, grad)
    assert_near(on_host(host, arguments, border, grad, **how), expected, 1e-11 if dtype == torch.float64 else 5e-5)


@pytest.mark.parametrize("spread", [0.0, 0.4])
def test_neighbors_that_share_corners(host, spread):
    """Zero offsets make every cell a corner of several samples, with weights of 0 and 1."""
    arguments = make_case(batch=1, channels=4, size=(6, 19), mask=True)
    arguments["offset"] = torch.full_like(arguments["offset"], spread)
    grad = grad_for(arguments)
    for border in ("zeros", "dcn_v1"):
        found = on_host(host, arguments, border, grad, capacity=40)
        assert_near(found, expected_of(arguments, border, grad), 1e-12)


@pytest.mark.parametrize("needs", [("input",), ("offset",), ("mask",), ("weight",), ("input", "mask")], ids=str)
def test_only_needed_gradients(host, needs):
    arguments = make_case(mask=True, groups=2, offset_groups=2)
    grad = grad_for(arguments)
    expected = expected_of(arguments, "zeros", grad)
    found = on_host(host, arguments, "zeros", grad, needs=needs)
    assert_near(found, {name: expected[name] for name in ("output", *needs)}, 1e-12)


@pytest.mark.parametrize("batch", [0, 1, 33])
def test_batches(host, batch):
    arguments = make_case(batch=33, channels=4, size=(4, 3), dtype=torch.float32)
    arguments |= {name: arguments[name][:batch] for name in ("input", "offset")}
    grad = grad_for(arguments)
    found = on_host(host, arguments, "zeros", grad, capacity=100)
    assert_near(found, expected_of(arguments, "zeros", grad), 2e-6)


def test_strides_of_the_offsets(host):
    arguments = make_case(mask=True, offset_groups=2)
    grad = grad_for(arguments)
    expected = expected_of(arguments, "zeros", grad)
    for name in ("offset", "mask"):
        arguments[name] = arguments[name].contiguous(memory_format=torch.channels_last)
    assert_near(on_host(host, arguments, "zeros", grad), expected, 1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 33, 65), (3, 40, 5), (1, 7, 70), (2, 300, 9), (2, 9, 300)], ids=str)
@pytest.mark.parametrize("blocks", [0, 2])
def test_transpose(host, shape, dtype, blocks):
    matrices = torch.arange(shape[0] * shape[1] * shape[2]).reshape(shape).to(dtype)
    found = torch.full((shape[0], shape[2], shape[1]), torch.nan, dtype=dtype)
    host("transpose", dtype.itemsize, blocks, matrices, Out(found), *shape, seed=1)
    assert torch.equal(found, matrices.transpose(1, 2))


@pytest.mark.parametrize("bytes", [1, 16])
def test_transpose_of_elements_of_another_size(host, bytes):
    """The caller leaves them to PyTorch: no operator takes bytes or complex numbers."""
    found = torch.zeros(1, 5, 3, dtype=torch.complex128)
    host("transpose", bytes, 0, torch.ones(1, 3, 5, dtype=torch.complex128), Out(found), 1, 3, 5)
    assert not found.any()


DETERMINISTIC = [(torch.float64, 1e-12), (torch.float32, 2e-6), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)]


@pytest.mark.parametrize(("dtype", "tolerance"), DETERMINISTIC, ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_deterministic_sums(host, dtype, tolerance, masked):
    """Deterministic sums have the same bits for any order of blocks and threads; floating point sums do not."""
    arguments = make_case(channels=8, size=(5, 4), mask=masked, dtype=dtype)
    arguments["input"] *= 1e3
    grad = grad_for(arguments)
    expected = expected_of(arguments, "zeros", grad)
    results, others = [], []
    for seed in range(4):
        found = on_host(host, arguments, "zeros", grad, deterministic=True, seed=seed, blocks=seed)
        assert_near(found, expected, tolerance)
        results.append(found["input"])
        others.append(on_host(host, arguments, "zeros", grad, seed=seed)["input"])
    assert all(torch.equal(found, results[0]) for found in results)
    assert not all(torch.equal(found, others[0]) for found in others)


@pytest.mark.parametrize("scale", [1e-30, 1e-290, 1e150])
def test_deterministic_sums_of_any_size(host, scale):
    arguments = make_case(channels=4, size=(4, 4))
    grad = grad_for(arguments) * scale
    found = on_host(host, arguments, "zeros", grad, deterministic=True)
    assert_near({"input": found["input"]}, {"input": expected_of(arguments, "zeros", grad)["input"]}, 1e-12)


def test_deterministic_sums_of_nothing_and_of_what_is_not_finite(host):
    arguments = make_case(channels=4, size=(4, 4), dtype=torch.float32, mask=True)
    grad = grad_for(arguments)
    found = on_host(host, arguments, "zeros", grad * 0, deterministic=True)
    assert not found["input"].any()
    for value in (float("inf"), float("nan")):
        grad[0, 0, 0, 0] = value
        assert on_host(host, arguments, "zeros", grad, deterministic=True)["input"].isnan().all()


@pytest.mark.parametrize("border", ["zeros", "dcn_v1"])
@pytest.mark.parametrize("case", CASES)
def test_split_products_equal_the_reference(host, case, border):
    """Products of bfloat16 parts are as exact as products in float32."""
    arguments = make_case(**CASES[case], seed=1, dtype=torch.float32)
    grad = grad_for(arguments)
    expected = expected_of(arguments, border, grad)
    assert_near(split_on_host(host, arguments, border, grad), expected, 2e-6)


@pytest.mark.parametrize("case", SIZES)
@pytest.mark.parametrize("wide", [True, False], ids=["wide", "narrow"])
def test_split_products_of_every_width(host, case, wide):
    arguments = make_case(**SIZES[case], dtype=torch.float32)
    grad = grad_for(arguments)
    expected = expected_of(arguments, "zeros", grad)
    assert_near(split_on_host(host, arguments, "zeros", grad, wide=wide, seed=3), expected, 2e-6)


@pytest.mark.parametrize("blocks", [0, 2])
def test_parts_add_up(host, blocks):
    """Three bfloat16 parts hold a float32 number, and six products of parts what float32 can hold of a product."""
    values = torch.randn(40, 30, generator=torch.Generator().manual_seed(0)) * torch.logspace(-12, 12, 30)
    left = parts_on_host(host, values, "left", blocks).double()
    right = parts_on_host(host, values, "right", blocks).double()
    chunked = parts_on_host(host, values, "chunked right", blocks).double()
    for parts in (left[:, :3], right[:, :3], chunked[:, [0, 2, 4]]):
        assert torch.equal(parts.sum(1), values.double())
    exact = values.double() ** 2
    assert ((left * right).sum(1) - exact).abs().div(exact).max() < 2**-23


def test_parts_of_what_is_not_finite(host):
    for value in (float("inf"), float("-inf"), float("nan")):
        assert parts_on_host(host, torch.full((1, 1), value), "left").sum(1).isnan().all()


@pytest.mark.parametrize("more", [False, True])
def test_products_are_added_to_strided_rows(host, more):
    products, bias = torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(0)), torch.arange(5.0)
    whole = torch.ones(7, 9)
    sum_on_host(host, list(products), whole[:, 2:7], bias, more)
    torch.testing.assert_close(whole[:, 2:7], products.sum(0) + bias + (1 if more else 0))
    assert (whole[:, :2] == 1).all()
    assert (whole[:, 7:] == 1).all()


OVERFLOWS = [(dtype, sign) for dtype in (torch.float64, torch.float32, torch.float16) for sign in (1, -1)]


# The product of float16 matrices is rounded once, from float32, so that its infinities do not cancel to NaN.
@pytest.mark.parametrize(("dtype", "sign"), [*OVERFLOWS, (torch.float64, 0), (torch.float32, 0)], ids=str)
def test_deterministic_sums_of_column_gradients_that_overflow(host, dtype, sign):
    """Factors are finite but their products are infinite or, from infinities of both signs, NaN."""
    arguments = make_case(channels=4, size=(4, 4), dtype=dtype)
    large = torch.finfo(dtype).max ** 0.75
    arguments["weight"] = torch.full_like(arguments["weight"], large)
    grad = torch.zeros_like(grad_for(arguments))
    grad[:, :1] = large if sign == 0 else sign * large
    grad[:, 1:2] = -large if sign == 0 else 0
    assert grad.isfinite().all() and arguments["weight"].isfinite().all()
    found = on_host(host, arguments, "zeros", grad, deterministic=True)
    assert found["input"].isnan().all()


@pytest.mark.parametrize(
    ("batch", "height", "width", "element_bytes", "rows"),
    [
        (1, 38, 63, 4, 2394),  # one product per image
        (8, 38, 63, 4, 19152),  # and per batch
        (8, 50, 84, 2, 33600),
        (8, 50, 84, 10, 11200),  # 1.5 GB in three equal tiles
        (1, 1, 1, 4, 1),
    ],
)
def test_tiles_are_few_and_equal(host, batch, height, width, element_bytes, rows):
    """Columns of 512 channels fill 512 MB at most; small products leave multiprocessors idle."""
    size = (height, width)
    shape = (batch, 512, *size, 512, *size, 3, 3, 1, 1, 2, 2, 2, 2, 1, 4, 0)
    found = torch.zeros(1, dtype=torch.int64)
    host("deform_conv_tile_rows", shape, element_bytes, Out(found))
    assert found.item() == rows
    assert found.item() * 512 * 9 * element_bytes <= 512 << 20
