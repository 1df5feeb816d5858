"""The CUDA kernels of the deformable convolution, run without a GPU: values, gradients and memory accesses."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops.cuda_on_host import Out
from tests.ops.deform_conv_on_host import (
    HALVES,
    SIZES,
    expected_of,
    grad_for,
    on_host,
    parts_on_host,
    split_on_host,
    sum_on_host,
)
from tests.ops.test_deform_conv import CASES, GOLDENS, assert_near, make_case


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
