"""Dispatch rules of the deformable convolution: opcheck, autocast, compile, export, FLOP counting."""

import pytest
import torch

from dcn_det.ops import DeformConv2d, deform_conv2d, library
from dcn_det.ops.deform_conv_rules import splits_products
from dcn_det.ops.flops import flop_counter
from dcn_det.ops.reference import deform_conv as reference

OPTIONS = ([2, 1], [1, 0], [1, 2])
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


@pytest.fixture(params=DEVICES)
def device(request) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return request.param


def make_arguments(device="cpu", *, mask=True, dtype=torch.float32, channels_last=False, requires_grad=False):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        values = torch.randn(*shape, generator=generator).to(device, dtype)
        if channels_last and len(shape) == 4:
            values = values.contiguous(memory_format=torch.channels_last)
        return values.requires_grad_(requires_grad)

    return [
        normal(2, 4, 7, 8),
        normal(2, 36, 4, 4),
        normal(6, 2, 3, 3),
        normal(6),
        normal(2, 18, 4, 4) if mask else None,
    ]


def call(input, offset, weight, bias, mask, border="zeros"):
    return deform_conv2d(input, offset, weight, bias, *OPTIONS, mask, border=border)


@pytest.mark.parametrize("mask", [False, True], ids=["no mask", "mask"])
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels last"])
def test_opcheck(device, mask, channels_last):
    arguments = make_arguments(device, mask=mask, channels_last=channels_last, requires_grad=True)
    torch.library.opcheck(torch.ops.dcn_det.deform_conv2d, (*arguments, *OPTIONS, "dcn_v1"))


@pytest.mark.parametrize("needs", [(True, True, True, True), (True, False, False, False), (False, False, True, False)])
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels last"])
def test_opcheck_backward(device, needs, channels_last):
    input, offset, weight, bias, mask = make_arguments(device, channels_last=channels_last)
    grad = torch.ones_like(call(input, offset, weight, bias, mask))
    arguments = (grad, input, offset, weight, mask, *OPTIONS, "zeros", *needs)
    torch.library.opcheck(torch.ops.dcn_det.deform_conv2d_backward, arguments)


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels last"])
def test_plain_tier_has_the_same_strides(channels_last):
    arguments = make_arguments(channels_last=channels_last)
    output = call(*arguments)
    input, offset, weight, bias, mask = arguments
    plain = reference.deform_conv2d(input, offset, weight, bias, mask, *OPTIONS, "zeros")
    assert plain.stride() == output.stride()
    backward = (output, input, offset, weight, mask, *OPTIONS, "zeros", True, True, True, True)
    expected = reference.deform_conv2d_backward(*backward)
    found = torch.ops.dcn_det.deform_conv2d_backward(*backward)
    assert [grad.stride() for grad in found] == [grad.stride() for grad in expected]


def test_meta_tensors_have_the_output_shape():
    arguments = [value.to("meta") for value in make_arguments()]
    output = call(*arguments)
    assert output.shape == (2, 6, 4, 4) and output.device.type == "meta"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_autocast_casts_all_but_the_offsets(device, dtype):
    arguments = make_arguments(device, requires_grad=True)
    with torch.autocast(device, dtype=dtype):
        output = call(*arguments)
    assert output.dtype == dtype
    low = [value.detach().to(dtype) for value in arguments]
    low[1] = arguments[1].detach()
    assert torch.equal(output, call(*low))
    grads = torch.autograd.grad(output, arguments, torch.ones_like(output))
    assert [grad.dtype for grad in grads] == [torch.float32] * 5
    rounded = call(low[0], low[1].to(dtype), *low[2:])
    assert not torch.equal(output, rounded)


def test_autocast_takes_mixed_dtypes_and_leaves_float64_alone():
    input, offset, weight, bias, mask = make_arguments()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert call(input.bfloat16(), offset, weight, bias, mask).dtype == torch.bfloat16
        assert call(input, offset.bfloat16(), weight, bias, mask.bfloat16()).dtype == torch.bfloat16
        assert call(*make_arguments(dtype=torch.float64)).dtype == torch.float64


def test_inference_mode_equals_eager(device):
    arguments = make_arguments(device, requires_grad=True)
    with torch.inference_mode():
        assert torch.equal(call(*arguments), call(*arguments).clone())
        output = call(*[value.clone() for value in arguments])
    assert torch.equal(output, call(*arguments))


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compile_equals_eager(device, dynamic):
    torch.manual_seed(0)
    module = DeformConv2d(4, 6, 3, padding=1, offset_groups=2, modulated=True).to(device)
    torch.nn.init.normal_(module.offset.weight, std=0.1)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for size in ((7, 8), (9, 5)) if dynamic else ((7, 8),):
        results = []
        for function in (module, compiled):
            input = torch.randn(2, 4, *size, generator=torch.Generator().manual_seed(1)).to(device).requires_grad_()
            output = function(input)
            results.append([output, *torch.autograd.grad(output.square().sum(), [input, *module.parameters()])])
        for found, expected in zip(results[1], results[0]):
            torch.testing.assert_close(found, expected)
    torch._dynamo.reset()


def test_compile_under_autocast():
    arguments = make_arguments()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(compiled(*arguments), call(*arguments))
    torch._dynamo.reset()


def test_export():
    torch.manual_seed(0)
    module = DeformConv2d(4, 6, 3, padding=1, border="dcn_v1").eval()
    torch.nn.init.normal_(module.offset.weight, std=0.1)
    input = torch.randn(2, 4, 7, 8)
    program = torch.export.export(module, (input,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    targets = [node.target for node in program.graph.nodes]
    assert torch.ops.dcn_det.deform_conv2d.default in targets
    for batch in (2, 3):
        input = torch.randn(batch, 4, 7, 8)
        torch.testing.assert_close(program.module()(input), module(input))


def test_double_backward_is_an_error():
    arguments = make_arguments(requires_grad=True)
    (grad,) = torch.autograd.grad(call(*arguments).sum(), arguments[0], create_graph=True)
    with pytest.raises(RuntimeError, match=r"deform_conv2d: double backward .* is not supported"):
        grad.sum().backward()


def test_flops_are_those_of_a_convolution():
    input, offset, weight, bias, mask = make_arguments(requires_grad=True)
    with flop_counter() as counter:
        output = call(input, offset, weight, bias, mask)
    products = 2 * 4 * 4 * 6 * 2 * 3 * 3  # batch, out cells, out channels, group channels, kernel
    assert counter.get_total_flops() == 2 * products
    with flop_counter() as counter:
        output.sum().backward()
    assert counter.get_total_flops() == 2 * 2 * products
    output = call(input.detach(), offset.detach(), weight, bias, mask.detach())
    with flop_counter() as counter:
        output.sum().backward()
    assert counter.get_total_flops() == 2 * products


@pytest.mark.cuda
def test_strict_determinism_on_cuda():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    arguments = make_arguments("cuda", requires_grad=True)
    expected = torch.autograd.grad(call(*arguments).sum(), arguments)
    torch.use_deterministic_algorithms(True)
    try:
        runs = [torch.autograd.grad(call(*arguments).sum(), arguments) for _ in range(3)]
    finally:
        torch.use_deterministic_algorithms(False)
    for grads in runs:
        assert all(torch.equal(a, b) for a, b in zip(grads, runs[0]))
        torch.testing.assert_close(grads, expected)


@pytest.mark.skipif(library.tier("deform_conv2d", "cpu") == "plain", reason="the plain tier raises other errors")
def test_operator_called_directly_guards_memory():
    """Direct calls skip the public function's checks: errors differ, but no access is out of bounds."""
    input, offset, weight, bias, mask = make_arguments()
    operator = torch.ops.dcn_det.deform_conv2d
    for wrong in (
        (input[0], offset, weight, bias, mask),
        (input, offset[:, :18], weight, bias, mask),
        (input, offset[..., :3], weight, bias, mask),
        (input, offset, weight[:, :1], bias, mask),
        (input, offset, weight, bias[:5], mask),
        (input, offset, weight, bias, mask[:1]),
        (input, offset, weight.double(), bias, mask),
        (input.int(), offset, weight.int(), None, mask),
    ):
        with pytest.raises(RuntimeError, match="deform_conv2d"):
            operator(*wrong, *OPTIONS, "zeros")
    with pytest.raises(RuntimeError, match="border must be"):
        operator(input, offset, weight, bias, mask, *OPTIONS, "ones")
    with pytest.raises(RuntimeError, match="stride and dilation must be positive"):
        operator(input, offset, weight, bias, mask, [0, 1], *OPTIONS[1:], "zeros")


class OnCuda:
    is_cuda = True


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_float32_products_are_split_unless_asked_otherwise(compiled):
    """TF32 and deterministic algorithms ask for one product of the matrices; the choice can be compiled."""

    def choose(tensor):
        function = torch.compile(splits_products, fullgraph=True, backend="eager") if compiled else splits_products
        torch.compiler.reset()
        return function(tensor)

    assert choose(OnCuda())
    assert not choose(torch.ones(1))
    torch.use_deterministic_algorithms(True)
    try:
        assert not choose(OnCuda())
    finally:
        torch.use_deterministic_algorithms(False)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        assert not choose(OnCuda())
    finally:
        torch.set_float32_matmul_precision(before)
    assert choose(OnCuda())
