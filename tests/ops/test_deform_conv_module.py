"""The deformable convolution module with its offset branch, and errors of module and function."""

import re
from typing import Any

import pytest
import torch
from torch import nn

from dcn_det.ops import DeformConv2d, deform_conv2d


def plain_twin(module: DeformConv2d) -> nn.Conv2d:
    twin = nn.Conv2d(
        module.in_channels,
        module.out_channels,
        module.kernel_size,
        module.stride,
        module.padding,
        module.dilation,
        module.groups,
        bias=module.bias is not None,
    )
    twin.load_state_dict({k: v for k, v in module.state_dict().items() if not k.startswith("offset.")})
    return twin


CONFIGURATIONS = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "padding": 2, "dilation": 2, "offset_groups": 4, "bias": False},
    {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0), "groups": 2},
    {"kernel_size": 3, "padding": 2, "dilation": 2, "offset_dilation": 1, "border": "dcn_v1"},
    {"kernel_size": 3, "stride": 2, "padding": 1, "offset_dilation": 3},
    {"kernel_size": 1},
]


@pytest.mark.parametrize("options", CONFIGURATIONS)
def test_starts_as_a_plain_convolution(options):
    torch.manual_seed(0)
    module = DeformConv2d(8, 6, **options)
    input = torch.randn(2, 8, 11, 9)
    torch.testing.assert_close(module(input), plain_twin(module)(input))


@pytest.mark.parametrize("options", CONFIGURATIONS)
def test_modulated_starts_as_a_plain_convolution_too(options):
    torch.manual_seed(0)
    module = DeformConv2d(8, 6, modulated=True, **options)
    input = torch.randn(2, 8, 11, 9)
    torch.testing.assert_close(module(input), plain_twin(module)(input))
    mask = module.sampling(input)[1]
    assert mask is not None and bool((mask == 1).all())


@pytest.mark.parametrize("mask_scale", [1.0, 2.0, 0.5])
def test_mask_is_the_scaled_sigmoid(mask_scale):
    torch.manual_seed(0)
    module = DeformConv2d(4, 6, 3, padding=1, offset_groups=2, modulated=True, mask_scale=mask_scale, bias=False)
    input = torch.randn(2, 4, 7, 8)
    torch.testing.assert_close(module(input), plain_twin(module)(input) * mask_scale / 2)
    nn.init.normal_(module.offset.weight, std=0.2)
    logits = module.offset(input)[:, 36:]
    torch.testing.assert_close(module.sampling(input)[1], mask_scale / (1 + torch.exp(-logits)))


def test_initializes_like_a_convolution():
    module = DeformConv2d(8, 6, 3)
    torch.manual_seed(0)
    module.reset_parameters()
    torch.manual_seed(0)
    twin = nn.Conv2d(8, 6, 3)
    assert all(torch.equal(module.get_parameter(name), twin.get_parameter(name)) for name in ("weight", "bias"))
    assert not any(parameter.any() for parameter in module.offset.parameters())


def test_parameters():
    module = DeformConv2d(8, 6, 3, groups=2, offset_groups=4, modulated=True)
    assert {name: tuple(value.shape) for name, value in module.named_parameters()} == {
        "weight": (6, 4, 3, 3),
        "bias": (6,),
        "offset.weight": (108, 8, 3, 3),
        "offset.bias": (108,),
    }
    assert set(dict(DeformConv2d(8, 6, 3, bias=False).named_parameters())) == {
        "weight",
        "offset.weight",
        "offset.bias",
    }


def test_sampling_feeds_the_operator():
    torch.manual_seed(0)
    module = DeformConv2d(4, 6, 3, padding=1, offset_groups=2, modulated=True, border="dcn_v1")
    nn.init.normal_(module.offset.weight, std=0.1)
    input = torch.randn(2, 4, 7, 8)
    offset, mask = module.sampling(input)
    assert mask is not None
    assert offset.shape == (2, 36, 7, 8) and mask.shape == (2, 18, 7, 8)
    assert mask.min() > 0 and 1 < mask.max() < 2
    expected = deform_conv2d(input, offset, module.weight, module.bias, padding=1, mask=mask, border="dcn_v1")
    assert torch.equal(module(input), expected)
    assert DeformConv2d(4, 6, 3).sampling(input)[1] is None


def test_every_parameter_gets_a_gradient():
    torch.manual_seed(0)
    module = DeformConv2d(4, 6, 3, padding=1, modulated=True)
    module(torch.randn(2, 4, 7, 8)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in module.parameters())


def test_autocast_keeps_offsets_in_float32():
    torch.manual_seed(0)
    module = DeformConv2d(4, 6, 3, padding=1, modulated=True)
    nn.init.normal_(module.offset.weight)
    input = torch.randn(2, 4, 7, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        offset, mask = module.sampling(input)
        output = module(input)
        assert module(input.bfloat16()).dtype == torch.bfloat16
    assert mask is not None and offset.dtype == mask.dtype == torch.float32 and output.dtype == torch.bfloat16
    assert torch.equal(offset, module.sampling(input)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=["bfloat16", "float64"])
def test_module_in_another_dtype(dtype):
    module = DeformConv2d(4, 6, 3, padding=1, modulated=True).to(dtype)
    assert module(torch.randn(2, 4, 7, 8, dtype=dtype)).dtype == dtype


def test_module_of_meta_tensors():
    module = DeformConv2d(4, 6, 3, padding=1, modulated=True).to("meta")
    assert module(torch.empty(2, 4, 7, 8, device="meta")).shape == (2, 6, 7, 8)


def test_representation():
    assert DeformConv2d(4, 6, 3).extra_repr() == "4, 6, kernel_size=(3, 3)"
    module = DeformConv2d(4, 6, (3, 2), 2, 1, groups=2, bias=False, offset_groups=4, modulated=True, border="dcn_v1")
    assert module.extra_repr() == (
        "4, 6, kernel_size=(3, 2), stride=(2, 2), padding=(1, 1), groups=2, offset_groups=4, modulated=True, "
        "border='dcn_v1', bias=False"
    )
    assert DeformConv2d(4, 6, 3, modulated=True, mask_scale=1.0).extra_repr().endswith("modulated=True, mask_scale=1.0")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": 3}, "in_channels is 8; expected a multiple of 3"),
        ({"groups": 4}, "out_channels is 6; expected a multiple of 4"),
        ({"offset_groups": 3}, "in_channels is 8; expected a multiple of 3"),
        ({"groups": 0}, "in_channels is 8; expected a multiple of 0"),
        ({"border": "edge"}, "border is 'edge'; expected one of 'zeros', 'dcn_v1'"),
        ({"stride": 0}, "stride is 0; expected one or two ints, each at least 1"),
        ({"dilation": (1, 1, 1)}, r"dilation is \(1, 1, 1\); expected one or two ints"),
        ({"dilation": 3, "offset_dilation": 1}, "offset_dilation is 1; .* not -2"),
        ({"kernel_size": 2, "offset_dilation": 2}, "offset_dilation is 2; .* not 0.5"),
    ],
)
def test_constructor_errors(options, message):
    with pytest.raises(ValueError, match=message):
        DeformConv2d(8, 6, **{"kernel_size": 3, **options})


def arguments() -> dict:
    return {
        "input": torch.zeros(2, 4, 7, 8),
        "offset": torch.zeros(2, 36, 4, 4),
        "weight": torch.zeros(6, 2, 3, 3),
        "bias": torch.zeros(6),
        "stride": (2, 1),
        "padding": (1, 0),
        "dilation": (1, 2),
        "mask": torch.zeros(2, 18, 4, 4),
    }


WRONG: dict[str, dict[str, Any]] = {
    "input is of shape (4, 7, 8); expected 4 dimensions": {"input": torch.zeros(4, 7, 8)},
    "offset is of shape (36, 4, 4); expected 4 dimensions": {"offset": torch.zeros(36, 4, 4)},
    "weight is of shape (6, 2, 9); expected 4 dimensions": {"weight": torch.zeros(6, 2, 9)},
    "bias is of shape (6, 1); expected 1 dimension": {"bias": torch.zeros(6, 1)},
    "mask is of shape (18, 4, 4); expected 4 dimensions": {"mask": torch.zeros(18, 4, 4)},
    "input is torch.int32; expected float32, float64": {"input": torch.zeros(2, 4, 7, 8, dtype=torch.int32)},
    "weight is torch.float64; expected torch.float32": {"weight": torch.zeros(6, 2, 3, 3).double()},
    "offset is torch.float64; expected torch.float32": {"offset": torch.zeros(2, 36, 4, 4).double()},
    "offset is torch.float16; expected torch.float32": {"offset": torch.zeros(2, 36, 4, 4).half()},
    "mask is torch.float16; expected torch.float32": {"mask": torch.zeros(2, 18, 4, 4).half()},
    "weight is on meta; expected cpu": {"weight": torch.zeros(6, 2, 3, 3, device="meta")},
    "input is of shape (2, 4, 0, 8); expected no dimension of size 0": {"input": torch.zeros(2, 4, 0, 8)},
    "weight is of shape (0, 2, 3, 3); expected no dimension of size 0": {"weight": torch.zeros(0, 2, 3, 3)},
    "input is of 5 channels; expected a multiple of 2": {"input": torch.zeros(2, 5, 7, 8)},
    "weight is of 5 output channels; expected a multiple of 2": {"weight": torch.zeros(5, 2, 3, 3)},
    "offset is of 35 channels; expected 18 (y and x of 9 taps) times": {"offset": torch.zeros(2, 35, 4, 4)},
    "offset is of 54 channels; expected 18": {"offset": torch.zeros(2, 54, 4, 4)},
    "offset is of 0 channels; expected 18": {"offset": torch.zeros(2, 0, 4, 4)},
    "offset is of shape (1, 36, 4, 4); expected (2, 36, 4, 4)": {"offset": torch.zeros(1, 36, 4, 4)},
    "offset is of shape (2, 36, 7, 8); expected (2, 36, 4, 4)": {"offset": torch.zeros(2, 36, 7, 8)},
    "mask is of shape (2, 9, 4, 4); expected (2, 18, 4, 4)": {"mask": torch.zeros(2, 9, 4, 4)},
    "bias is of shape (5,); expected (6,)": {"bias": torch.zeros(5)},
    "input is of width 4 with padding; expected at least 5": {"input": torch.zeros(2, 4, 7, 4)},
    "stride is (0, 1); expected one or two ints, each at least 1": {"stride": (0, 1)},
    "padding is -1; expected one or two ints, each at least 0": {"padding": -1},
    "dilation is 1.5; expected one or two ints": {"dilation": 1.5},
    "border is 'reflect'; expected one of 'zeros', 'dcn_v1'": {"border": "reflect"},
}


def test_right_arguments_pass():
    assert deform_conv2d(**arguments()).shape == (2, 6, 4, 4)


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments(message):
    with pytest.raises(ValueError, match=re.escape(f"deform_conv2d: {message}")):
        deform_conv2d(**{**arguments(), **WRONG[message]})
