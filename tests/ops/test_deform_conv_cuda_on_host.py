"""The CUDA kernels of the deformable convolution, run without a GPU: values, gradients and memory accesses."""

import json

import numpy as np
import pytest
import torch
from cuda_on_host import InOut, Out
from hypothesis import given, settings
from hypothesis import strategies as st
from test_deform_conv import CASES, GOLDENS, assert_near, gradients, make_case

from dcn_det.ops.reference import deform_conv as reference

CAPACITY = 11  # output positions per tile: not a multiple of a batch, fewer than an image has
HALVES = [torch.float16, torch.bfloat16]
# Sizes that occupy one lane of four, more than a warp, and wide accesses with 4, 8 and 32 lanes.
SIZES = {
    "one channel to a group": {"groups": 6, "offset_groups": 6, "out_channels": 6},
    "4 lanes": {"channels": 32, "offset_groups": 4, "groups": 2, "size": (5, 4)},
    "8 lanes": {"channels": 64, "offset_groups": 1, "groups": 2, "size": (4, 4), "kernel": (2, 2), "mask": True},
    "32 lanes": {"channels": 256, "size": (3, 4), "kernel": (2, 2), "mask": True},
}


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
    input, offset, weight, mask = (arguments[name] for name in ("input", "offset", "weight", "mask"))
    bias = arguments.get("bias")
    dtype = input.dtype
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    offset, mask = offset.to(sums), None if mask is None else mask.to(sums)
    batch, channels, *size = input.shape
    out_channels, group_channels, *kernel = weight.shape
    groups, taps, out_size = channels // group_channels, kernel[0] * kernel[1], offset.shape[2:]
    steps = [step for name in ("stride", "padding", "dilation") for step in arguments[name]]
    offset_groups = offset.shape[1] // (2 * taps)
    sizes = (batch, channels, *size, out_channels, *out_size, *kernel, *steps, groups, offset_groups)
    shape = (*sizes, int(border == "dcn_v1"))
    positions = batch * out_size[0] * out_size[1]
    tiles = -(-positions // capacity)

    def strides(planes):
        return None if planes is None else (planes.stride(0), planes.stride(1), planes.stride(3))

    features = input.permute(0, 2, 3, 1).contiguous()
    matrices = weight.permute(0, 2, 3, 1).reshape(groups, out_channels // groups, -1)
    rows = grad.permute(0, 2, 3, 1).reshape(positions, groups, out_channels // groups).transpose(0, 1).contiguous()
    reads = (features, offset, strides(offset), mask, strides(mask))
    columns = input.new_full((tiles, groups, capacity, matrices.shape[2]), torch.nan)
    grad_columns = torch.zeros_like(columns)
    output = input.new_empty(groups, positions, out_channels // groups)
    for tile in range(tiles):
        first = tile * capacity
        count = min(capacity, positions - first)
        place = (capacity, first, count)
        host("deform_conv_fill", dtype, shape, wide, blocks, *reads, Out(columns[tile]), *place, seed=seed)
        output[:, first : first + count] = columns[tile, :, :count] @ matrices.transpose(1, 2)
        grad_columns[tile, :, :count] = rows[:, first : first + count] @ matrices
    grad_features = torch.zeros_like(features, dtype=sums)
    grad_offset = torch.full_like(offset, torch.nan)
    grad_mask = None if mask is None else torch.full_like(mask, torch.nan)
    results = (
        InOut(grad_features) if "input" in needs else None,
        Out(grad_offset) if "offset" in needs else None,
        Out(grad_mask) if "mask" in needs and mask is not None else None,
    )
    factors = (grad.contiguous(), matrices.contiguous())
    how = (dtype, shape, wide, blocks, deterministic)
    keep, before = "weight" in needs, grad_columns.clone()
    host("deform_conv_sweep", *how, *reads, *factors, InOut(grad_columns), capacity, *results, keep, seed=seed)
    for tile in range(tiles):
        count = min(capacity, positions - tile * capacity)
        assert torch.equal(grad_columns[tile, :, :count], (columns if keep else before)[tile, :, :count])
    whole = grad_columns.transpose(0, 1).reshape(groups, tiles * capacity, columns.shape[3])[:, :positions]
    grad_matrices = rows.transpose(1, 2).to(sums) @ whole.to(sums)
    output = output.transpose(0, 1).reshape(batch, *out_size, out_channels).permute(0, 3, 1, 2)
    grad_weight = grad_matrices.reshape(out_channels, *kernel, group_channels).permute(0, 3, 1, 2)
    found = {"output": output, "input": grad_features.permute(0, 3, 1, 2), "offset": grad_offset}
    found |= {"weight": grad_weight} | ({} if mask is None else {"mask": grad_mask})
    if bias is not None:
        found["output"] = output + bias[:, None, None]
    return {name: value for name, value in found.items() if name in ("output", *needs)}


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
    arguments = {name: torch.from_numpy(data[name]) for name in ("input", "offset", "weight")}
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
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 33, 65), (3, 40, 5), (1, 7, 70)], ids=str)
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
