"""Tests that need a GPU: streams, devices, full-size tiles, sums that do not depend on the order of threads."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import torch

from dcn_det.ops import batched_nms, deform_conv2d, library, nms
from tests.ops.cuda_cases import DEVICE, OPERATORS, conv_case, in_float64, plain_conv, results, run_conv, wide_case
from tests.ops.pooling_tiers import assert_near
from tests.ops.test_nms import random_boxes
from tests.ops.test_safety import MOVED, direct_call

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(library.tier("deform_conv2d", DEVICE) != DEVICE, reason="no compiled CUDA kernels"),
]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@contextmanager
def sums(strict: bool) -> Iterator[None]:
    """Sums in fixed point, or in the order in which threads arrive."""
    torch.use_deterministic_algorithms(strict)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.fixture
def deterministic() -> Iterator[None]:
    with sums(True):
        yield


@pytest.fixture
def exact_products() -> Iterator[None]:
    """Disables TensorFloat-32 in float32 products."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.usefixtures("exact_products")
def test_equals_the_reference(name, dtype, layout):
    run, plain, case = OPERATORS[name]
    tensors = case(dtype)
    expected = in_float64(plain, tensors)
    tensors["input"] = tensors["input"].contiguous(memory_format=layout)
    assert_near(results(run, tensors), expected, TOLERANCE[dtype])


@pytest.mark.parametrize("border", ["zeros", "dcn_v1"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.usefixtures("exact_products")
def test_wide_convolution(border, dtype):
    tensors, options = wide_case(dtype), {"padding": 2, "dilation": 2, "border": border}
    expected = in_float64(partial(plain_conv, **options), tensors)
    tensors["input"] = tensors["input"].contiguous(memory_format=torch.channels_last)
    for strict in (False, True):
        with sums(strict):
            found = results(partial(run_conv, **options), tensors)
        assert_near(found, expected, TOLERANCE[dtype])


def beside_alignment(tensor: torch.Tensor, channels_last: bool) -> torch.Tensor:
    """Returns an equal tensor on the device whose memory begins 4 bytes after a multiple of 16."""
    shape = tensor.permute(0, 2, 3, 1).shape if channels_last else tensor.shape
    skipped = 4 // tensor.element_size()
    view = torch.empty(tensor.numel() + skipped, dtype=tensor.dtype, device=DEVICE)[skipped:].view(shape)
    view = view.permute(0, 3, 1, 2) if channels_last else view
    view.copy_(tensor)
    assert view.data_ptr() % 16 == 4
    return view


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.usefixtures("exact_products")
def test_memory_beside_the_alignment_of_wide_accesses(name, dtype, channels_last):
    run, plain, case = OPERATORS[name]
    tensors = case(dtype)
    beside = {key: beside_alignment(tensor, channels_last and key == "input") for key, tensor in tensors.items()}
    assert_near(results(run, beside), in_float64(plain, tensors), TOLERANCE[dtype])


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.usefixtures("deterministic", "exact_products")
def test_deterministic_algorithms(name, dtype):
    run, plain, case = OPERATORS[name]
    tensors = case(dtype)
    first, *others = (results(run, tensors) for _ in range(4))
    for other in others:
        assert all(torch.equal(other[key], first[key]) for key in first)
    assert_near(first, in_float64(plain, tensors), TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.usefixtures("exact_products")
def test_tiles_of_full_size(dtype):
    """Tests more than 512 MB of columns, in tiles that end within an image; the CPU uses other tiles."""
    tensors = conv_case(dtype, batch=16, channels=512, size=(50, 84), masked=False)
    tensors["weight"] /= 4
    assert_near(results(run_conv, tensors), results(run_conv, tensors, "cpu"), 10 * TOLERANCE[dtype])


@pytest.mark.parametrize("name", OPERATORS)
def test_side_stream(name):
    """Kernels run on the current stream and wait for inputs that are still being computed there."""
    run, _, case = OPERATORS[name]
    tensors = case()
    expected = results(run, tensors)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        delay = torch.randn(4096, 4096, device=DEVICE)
        for _ in range(20):
            delay = delay @ delay * 1e-3
        late = {key: tensor.to(DEVICE) + 0 * delay.nan_to_num()[0, 0].to(tensor) for key, tensor in tensors.items()}
        found = results(run, late)
    assert_near(found, expected, 1e-5)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("name", OPERATORS)
def test_another_device_than_the_current_one(name):
    run, _, case = OPERATORS[name]
    expected = results(run, case())
    assert torch.cuda.current_device() == 0
    assert_near(results(run, case(), "cuda:1"), expected, 1e-5)
    assert torch.cuda.current_device() == 0


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_suppression_on_another_device():
    boxes, scores = random_boxes(500, seed=1)
    assert nms(boxes.to("cuda:1"), scores.to("cuda:1"), 0.5).tolist() == nms(boxes, scores, 0.5).tolist()


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("strict", [False, True], ids=["atomic", "deterministic"])
def test_nothing_waits_for_the_device(name, strict):
    """Neither pass synchronizes with the device."""
    run, _, case = OPERATORS[name]
    tensors = {key: tensor.to(DEVICE) for key, tensor in case().items()}
    leaves = [tensors["input"].requires_grad_()]
    grad = torch.ones_like(run(**tensors))
    torch.use_deterministic_algorithms(strict)
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.autograd.grad(run(**tensors), leaves, grad)
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", OPERATORS)
def test_captured_graph(name):
    run, _, case = OPERATORS[name]
    tensors = {key: tensor.to(DEVICE) for key, tensor in case().items()}
    expected = run(**tensors)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run(**tensors)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = run(**tensors)
    output.zero_()
    graph.replay()
    torch.testing.assert_close(output, expected)


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("strict", [False, True], ids=["atomic", "deterministic"])
def test_captured_backward(name, strict):
    run, _, case = OPERATORS[name]
    tensors = {key: tensor.to(DEVICE) for key, tensor in case().items()}
    leaves = {key: tensor.requires_grad_() for key, tensor in tensors.items() if key != "rois"}
    grad = torch.ones_like(run(**tensors))

    def gradients() -> dict:
        return dict(zip(leaves, torch.autograd.grad(run(**tensors), list(leaves.values()), grad)))

    with sums(strict):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            expected = {key: value.clone() for key, value in gradients().items()}
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = gradients()
        for value in found.values():
            value.fill_(torch.nan)
        for _ in range(2):  # sums start from zero at every replay
            graph.replay()
    assert_near(found, expected, 2e-5)


@pytest.mark.parametrize(("name", "moved"), MOVED)
def test_kernels_refuse_tensors_on_two_devices(name, moved):
    direct_call(name, {}, DEVICE)
    with pytest.raises(RuntimeError, match=r"is on (cpu|cuda:0); expected (cpu|cuda:0), like "):
        direct_call(name, {moved: "cpu"}, DEVICE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.usefixtures("deterministic")
def test_products_that_overflow_on_the_way_give_nan(dtype):
    """Gradient and weight are finite, but the gradient of the columns, in the same dtype, is not."""
    tensors = {key: tensor.to(DEVICE) for key, tensor in conv_case(dtype).items()}
    large = torch.finfo(dtype).max ** 0.75
    tensors["weight"].fill_(large)
    output = run_conv(**{**tensors, "input": tensors["input"].requires_grad_()})
    (found,) = torch.autograd.grad(output, [tensors["input"]], torch.full_like(output, large))
    assert found.isnan().all()


@pytest.mark.usefixtures("deterministic")
def test_gradients_that_are_not_finite_stay_so():
    tensors = {key: tensor.to(DEVICE) for key, tensor in conv_case().items()}
    output = run_conv(**{**tensors, "input": tensors["input"].requires_grad_()})
    grad = torch.ones_like(output)
    grad[0, 0, 0, 0] = float("inf")
    (found,) = torch.autograd.grad(output, [tensors["input"]], grad)
    assert found.isnan().all()


def test_more_than_2_to_the_31_elements():
    """Indices have 64 bits: the last image of a batch beyond 32-bit indices equals the image alone."""
    images, channels, side = 34, 256, 512
    needed = 4 * images * channels * side * side * 2
    if torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"needs {needed >> 30} GB of GPU memory")
    assert images * channels * side * side > 2**31
    generator = torch.Generator(DEVICE).manual_seed(0)
    input = torch.zeros(images, channels, side, side, dtype=torch.float16, device=DEVICE)
    input = input.contiguous(memory_format=torch.channels_last)
    input[-1].normal_(generator=generator)
    offset = torch.randn(images, 2, side, side, device=DEVICE, generator=generator)
    weight = torch.randn(8, channels, 1, 1, dtype=torch.float16, device=DEVICE, generator=generator)
    found = deform_conv2d(input, offset, weight)[-1:].clone()
    torch.testing.assert_close(found, deform_conv2d(input[-1:].clone(), offset[-1:].clone(), weight))


@pytest.mark.parametrize("count", [1, 5000, 20000])
def test_suppression_equals_the_cpu(count):
    boxes, scores = random_boxes(count, seed=count, extent=1000, size=120)
    labels = torch.randint(80, (count,), generator=torch.Generator().manual_seed(0))
    on_device = boxes.to(DEVICE), scores.to(DEVICE)
    for max_keep in (None, 300):
        expected = nms(boxes, scores, 0.5, max_keep).tolist()
        assert nms(*on_device, 0.5, max_keep).tolist() == expected
        expected = batched_nms(boxes, scores, labels, 0.5, max_keep).tolist()
        assert batched_nms(*on_device, labels.to(DEVICE), 0.5, max_keep).tolist() == expected


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


def test_float32_products_are_exact_unless_tf32_is_allowed():
    """Products of bfloat16 parts, the default, are about as exact as those in float32, which determinism asks for."""
    tensors = wide_case(batch=1, size=(38, 63))
    tensors["offset"] = tensors["offset"].round() + 0.25  # float32 and float64 read the same cells
    expected = in_float64(plain_conv, tensors)

    def errors() -> dict[str, float]:
        return {name: relative_error(value, expected[name]) for name, value in results(run_conv, tensors).items()}

    for strict in (False, True):
        with sums(strict):
            assert max(errors().values()) < 4e-6
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        assert errors()["output"] > 1e-4
    finally:
        torch.set_float32_matmul_precision(before)
