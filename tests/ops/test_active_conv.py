"""Active Convolution: a deformable convolution whose offsets are parameters."""

import pytest
import torch
from torch import nn

from dcn_det.ops import ActiveConv2d, deform_conv2d

CONFIGURATIONS = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "padding": 2, "dilation": 2, "offset_groups": 4, "bias": False},
    {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0), "groups": 2, "border": "dcn_v1"},
]


def moved(dtype: torch.dtype = torch.float32, **options) -> ActiveConv2d:
    """A module with offsets away from whole numbers, where the gradient jumps."""
    torch.manual_seed(0)
    module = ActiveConv2d(8, 6, **options).to(dtype)
    with torch.no_grad():
        module.offset.copy_(torch.randint(-2, 2, module.offset.shape) + 0.2 + 0.6 * torch.rand(module.offset.shape))
    return module


@pytest.mark.parametrize("options", CONFIGURATIONS)
def test_starts_as_a_plain_convolution(options):
    torch.manual_seed(0)
    module = ActiveConv2d(8, 6, **options)
    twin = nn.Conv2d(8, 6, **{key: value for key, value in options.items() if key not in ("offset_groups", "border")})
    twin.load_state_dict({key: value for key, value in module.state_dict().items() if key != "offset"})
    input = torch.randn(2, 8, 11, 9)
    torch.testing.assert_close(module(input), twin(input))


@pytest.mark.parametrize("options", CONFIGURATIONS)
def test_equals_a_deformable_convolution_with_constant_offsets(options):
    module = moved(**options)
    input = torch.randn(2, 8, 11, 9)
    output = module(input)
    offset = module.offset[None, :, None, None].repeat(2, 1, *output.shape[2:])
    expected = deform_conv2d(
        input,
        offset,
        module.weight,
        module.bias,
        module.stride,
        module.padding,
        module.dilation,
        border=module.border,
    )
    assert torch.equal(output, expected)


def test_whole_offsets_shift_the_taps():
    module = ActiveConv2d(1, 1, 1, bias=False)
    with torch.no_grad():
        module.weight.fill_(1)
        module.offset.copy_(torch.tensor([1.0, -2.0]))  # one row down, two columns to the left
    input = torch.arange(20.0).view(1, 1, 4, 5)
    expected = torch.tensor([[0.0, 0, 5, 6, 7], [0, 0, 10, 11, 12], [0, 0, 15, 16, 17], [0, 0, 0, 0, 0]])
    assert torch.equal(module(input)[0, 0], expected)


@pytest.mark.parametrize("options", CONFIGURATIONS)
def test_gradients_by_finite_differences(options):
    module = moved(torch.float64, **options)
    names = [name for name, _ in module.named_parameters()]

    def call(input: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(module, dict(zip(names, values)), (input,))

    arguments = [torch.randn(2, 8, 6, 5, dtype=torch.float64), *(each.detach() for each in module.parameters())]
    torch.autograd.gradcheck(call, [each.requires_grad_() for each in arguments], fast_mode=True)


def test_the_gradient_of_the_offset_is_the_sum_over_positions_and_images():
    module = moved(torch.float64, kernel_size=3, padding=1)
    input = torch.randn(3, 8, 6, 5, dtype=torch.float64)
    module(input).square().sum().backward()
    offset = module.offset.detach()[None, :, None, None].repeat(3, 1, 6, 5).requires_grad_()
    deform_conv2d(input, offset, module.weight, module.bias, padding=1).square().sum().backward()
    assert module.offset.grad is not None and offset.grad is not None
    torch.testing.assert_close(module.offset.grad, offset.grad.sum((0, 2, 3)))


def test_parameters_and_initialization():
    module = ActiveConv2d(8, 6, 3, groups=2, offset_groups=4)
    assert {name: tuple(value.shape) for name, value in module.named_parameters()} == {
        "weight": (6, 4, 3, 3),
        "bias": (6,),
        "offset": (72,),
    }
    torch.manual_seed(0)
    module.reset_parameters()
    torch.manual_seed(0)
    twin = nn.Conv2d(8, 6, 3, groups=2)
    assert torch.equal(module.weight, twin.weight) and not module.offset.any()
    assert module.extra_repr() == "8, 6, kernel_size=(3, 3), groups=2, offset_groups=4"


def test_autocast_keeps_offsets_in_float32():
    module = moved(kernel_size=3, padding=1)
    input = torch.randn(2, 8, 7, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = module(input)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), module(input), atol=0.05, rtol=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": 3}, "ActiveConv2d: in_channels is 8; expected a multiple of 3"),
        ({"offset_groups": 3}, "ActiveConv2d: in_channels is 8; expected a multiple of 3"),
        ({"border": "edge"}, "border is 'edge'; expected one of"),
        ({"stride": 0}, "stride is 0; expected one or two ints"),
    ],
)
def test_constructor_errors(options, message):
    with pytest.raises(ValueError, match=message):
        ActiveConv2d(8, 6, **{"kernel_size": 3, **options})


@pytest.mark.parametrize("shape", [(8, 11, 9), (2, 8, 2, 9), (2, 7, 11, 9)])
def test_an_input_of_another_shape(shape):
    with pytest.raises(ValueError, match="deform_conv2d: input is of"):
        ActiveConv2d(8, 6, 3)(torch.zeros(shape))
