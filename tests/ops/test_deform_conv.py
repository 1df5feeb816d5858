"""Values and gradients of the deformable convolution, for every available tier."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch.nn import functional as F

from dcn_det.ops import deform_conv2d, library
from dcn_det.ops.deform_conv_check import check_arguments, pair_of
from dcn_det.ops.reference import deform_conv as reference

GOLDENS = sorted((Path(__file__).parent / "goldens").glob("conv_*.npz"))


class PlainTier(torch.autograd.Function):
    """Forward and backward of the plain tier, whichever tier serves the CPU."""

    @staticmethod
    def forward(ctx, input, offset, weight, bias, mask, *options):
        ctx.save_for_backward(input, offset, weight, mask)
        ctx.options = options
        return reference.deform_conv2d(input, offset, weight, bias, mask, *options)

    @staticmethod
    def backward(ctx, grad):
        input, offset, weight, mask = ctx.saved_tensors
        needs = [ctx.needs_input_grad[i] for i in (0, 1, 2, 4)]
        results = reference.deform_conv2d_backward(grad, input, offset, weight, mask, *ctx.options, *needs)
        grads = [result if need else None for result, need in zip(results, needs)]
        return (*grads[:3], grad.sum((0, 2, 3)) if ctx.needs_input_grad[3] else None, grads[3], *[None] * 4)


def plain_deform_conv2d(
    input, offset, weight, bias=None, stride=1, padding=0, dilation=1, mask=None, *, border="zeros"
):
    options = pair_of("stride", stride), pair_of("padding", padding), pair_of("dilation", dilation), border
    check_arguments(input, offset, weight, bias, mask, *options)
    return PlainTier.apply(input, offset, weight, bias, mask, *options)


class Tier:
    def __init__(self, name: str) -> None:
        self.name = name
        self.device = "cuda" if name == "cuda" else "cpu"
        self.operator = plain_deform_conv2d if name == "plain" else deform_conv2d

    def __call__(self, *args, **kwargs):
        return self.operator(*args, **kwargs)

    def gradients(self, arguments: dict, grad=None, **kwargs) -> dict[str, torch.Tensor]:
        """Returns the output and the gradients of all floating point arguments, on the CPU."""
        return gradients(self.operator, to_device(arguments, self.device), grad, **kwargs)


@pytest.fixture(params=["cpu", "plain", pytest.param("cuda", marks=pytest.mark.cuda)])
def tier(request) -> Iterator[Tier]:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if request.param != "plain" and library.tier("deform_conv2d", request.param) != request.param:
        pytest.skip(f"no compiled {request.param} kernel: {library.status()[request.param].reason}")
    threads = torch.get_num_threads()
    if request.param == "plain":
        torch.set_num_threads(1)  # many small operations, for which threads cost more than they save
    yield Tier(request.param)
    torch.set_num_threads(threads)


def to_device(arguments: dict, device: str) -> dict:
    return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}


def gradients(operator, arguments: dict, grad=None, **kwargs) -> dict[str, torch.Tensor]:
    leaves = {k: v.detach().requires_grad_() for k, v in arguments.items() if isinstance(v, torch.Tensor)}
    output = operator(**{**arguments, **leaves}, **kwargs)
    if grad is None:
        grad = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).reshape(output.shape)
    found = torch.autograd.grad(output, list(leaves.values()), grad.to(output))
    return {"output": output.detach().cpu()} | {k: v.cpu() for k, v in zip(leaves, found)}


def assert_near(found: dict, expected: dict, tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        scale = value.abs().max().clamp(min=1e-12) if value.numel() else 1.0
        error = (found[name].double() - value.double()).abs().max() / scale if value.numel() else 0.0
        assert found[name].shape == value.shape and error <= tolerance, f"{name}: {error:.2e} of the largest value"


def make_case(
    batch=2,
    channels=6,
    out_channels=4,
    size=(9, 7),
    kernel=(3, 3),
    stride=(1, 1),
    padding=(1, 1),
    dilation=(1, 1),
    groups=1,
    offset_groups=1,
    bias=True,
    mask=False,
    spread=2.0,
    dtype=torch.float64,
    seed=0,
) -> dict:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    taps = kernel[0] * kernel[1]
    out = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in zip(size, kernel, stride, padding, dilation)]
    offset = normal(batch, 2 * offset_groups * taps, *out) * spread
    # Away from integers, where the gradient jumps.
    offset = offset.floor() + 0.1 + 0.8 * (offset - offset.floor())
    return {
        "input": normal(batch, channels, *size),
        "offset": offset,
        "weight": normal(out_channels, channels // groups, *kernel),
        "bias": normal(out_channels) if bias else None,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "mask": normal(batch, offset_groups * taps, *out).sigmoid() if mask else None,
    }


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "res5": {"channels": 8, "dilation": (2, 2), "padding": (2, 2), "offset_groups": 4, "bias": False},
    "mask": {"mask": True},
    "groups": {"groups": 2, "offset_groups": 3, "mask": True},
    "many groups": {"groups": 3, "offset_groups": 2, "out_channels": 6},
    "depthwise": {"groups": 6, "out_channels": 12},
    "odd kernel": {"kernel": (3, 2), "stride": (2, 1), "padding": (1, 0), "dilation": (2, 1), "mask": True},
    "1x1": {"kernel": (1, 1), "padding": (0, 0)},
    "single row": {"size": (1, 9)},
    "single column": {"size": (9, 1)},
    "single output": {"size": (3, 3), "padding": (0, 0)},
    "far offsets": {"spread": 20.0},
    "wide channels": {"channels": 150, "offset_groups": 2, "size": (4, 5)},
}


@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.stem)
def test_golden_vectors(tier, path):
    data = np.load(path)
    meta = json.loads(str(data["meta"]))
    options = {name: tuple(meta[name]) for name in ("stride", "padding", "dilation")}
    arguments = {name: torch.from_numpy(data[name]) for name in ("input", "offset", "weight")}
    found = tier.gradients(arguments, torch.from_numpy(data["grad_output"]), **options, border="dcn_v1")
    names = {"output": "output", "input": "grad_input", "offset": "grad_offset", "weight": "grad_weight"}
    assert_near(found, {key: torch.from_numpy(data[name]) for key, name in names.items()}, 2e-5)


def test_golden_vectors_are_there():
    assert len(GOLDENS) == 7


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_equals_torchvision(tier, case, dtype):
    arguments = make_case(**CASES[case], dtype=dtype)
    expected = gradients(torchvision.ops.deform_conv2d, arguments)
    assert_near(tier.gradients(arguments), expected, 1e-11 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("border", ["zeros", "dcn_v1"])
@pytest.mark.parametrize("case", CASES)
def test_equals_autograd_of_the_reference(tier, case, border):
    arguments = make_case(**CASES[case], seed=1)

    def by_autograd(input, offset, weight, bias=None, mask=None, **options):
        return reference.deform_conv2d(input, offset, weight, bias, mask, *options.values())

    arguments |= {"border": border}
    assert_near(tier.gradients(arguments), gradients(by_autograd, arguments), 1e-11)


@pytest.mark.parametrize("border", ["zeros", "dcn_v1"])
@pytest.mark.parametrize("case", ["plain", "groups", "odd kernel"])
def test_gradcheck(tier, case, border):
    arguments = to_device(make_case(**CASES[case], batch=1, size=(5, 4), seed=2), tier.device)
    leaves = {k: v.requires_grad_() for k, v in arguments.items() if isinstance(v, torch.Tensor)}

    def function(*values):
        return tier(**{**arguments, **dict(zip(leaves, values))}, border=border)

    # Atomic additions make the last digits of CUDA's gradient vary.
    assert torch.autograd.gradcheck(
        function, tuple(leaves.values()), fast_mode=True, nondet_tol=1e-10 if tier.device == "cuda" else 0.0
    )


@pytest.mark.parametrize("border", ["zeros", "dcn_v1"])
@pytest.mark.parametrize("case", CASES)
def test_zero_offsets_are_a_convolution(tier, case, border):
    arguments = make_case(**{**CASES[case], "mask": False})
    arguments["offset"] = torch.zeros_like(arguments["offset"])
    groups = arguments["input"].shape[1] // arguments["weight"].shape[1]

    def convolution(input, offset, weight, bias, stride, padding, dilation, mask):
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups) + 0 * offset.sum()

    found, expected = tier.gradients(arguments, border=border), gradients(convolution, arguments)
    del found["offset"], expected["offset"]
    assert_near(found, expected, 1e-12)


# A map of three cells, 1, 10 and 100: value and slope at a position, by either rule.
@pytest.mark.parametrize(
    ("at", "zeros", "dcn_v1"),
    [
        (-1.0, (0, 0), (0, 0)),
        (-0.25, (0.75, 1), (0, 0)),
        (0.0, (1, 9), (1, 9)),
        (0.5, (5.5, 9), (5.5, 9)),
        (1.0, (10, 90), (10, 90)),
        (2.0, (100, -100), (100, 0)),
        (2.75, (25, -100), (100, 0)),
        (3.0, (0, 0), (0, 0)),
        (float("nan"), (0, 0), (0, 0)),
        (float("inf"), (0, 0), (0, 0)),
        (float("-inf"), (0, 0), (0, 0)),
        (1e30, (0, 0), (0, 0)),
        (-1e30, (0, 0), (0, 0)),
    ],
)
@pytest.mark.parametrize("axis", [0, 1], ids=["y", "x"])
def test_border_rules_by_hand(tier, axis, at, zeros, dcn_v1):
    cells = torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64)
    shape = (1, 1, 3, 1) if axis == 0 else (1, 1, 1, 3)
    offset = torch.zeros(1, 2, *shape[2:], dtype=torch.float64)
    offset[0, axis, 0, 0] = at
    arguments = {"input": cells.reshape(shape), "offset": offset, "weight": torch.ones(1, 1, 1, 1).double()}
    grad = torch.zeros(shape)
    grad[0, 0, 0, 0] = 1
    for border, (value, slope) in (("zeros", zeros), ("dcn_v1", dcn_v1)):
        found = tier.gradients(arguments, grad, border=border)
        assert found["output"][0, 0, 0, 0] == value
        assert found["offset"][0, axis, 0, 0] == slope
        inside = zeros if border == "zeros" else dcn_v1
        assert (found["input"].abs().sum() > 0) == (inside[0] != 0)


def test_wild_offsets_equal_far_ones(tier):
    arguments = make_case(dtype=torch.float32, mask=True, offset_groups=2)
    wild = torch.rand(arguments["offset"].shape, generator=torch.Generator().manual_seed(3)) < 0.3
    values = torch.tensor([float("nan"), float("inf"), float("-inf"), 1e30, -1e30, 3e9, -3e9])
    choice = torch.arange(wild.numel()).reshape(wild.shape) % len(values)
    far = {**arguments, "offset": torch.where(wild, torch.tensor(1e4), arguments["offset"])}
    arguments["offset"] = torch.where(wild, values[choice], arguments["offset"])
    found = tier.gradients(arguments)
    assert_near(found, tier.gradients(far), 1e-6 if tier.device == "cuda" else 0.0)
    assert not found["offset"][wild].any()


def test_samples_beyond_the_map_do_not_read_it(tier):
    arguments = make_case(dtype=torch.float32)
    arguments["input"].fill_(float("inf"))
    arguments["offset"].fill_(1e4)
    output = tier(**to_device(arguments, tier.device)).cpu()
    assert torch.equal(output, arguments["bias"][:, None, None].expand_as(output))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("wide_offset", [False, True], ids=["half offset", "float32 offset"])
def test_half_precision(tier, dtype, wide_offset):
    arguments = make_case(channels=64, offset_groups=2, groups=2, mask=True, dtype=dtype)
    if wide_offset:
        arguments["offset"] = make_case(channels=64, offset_groups=2, groups=2, mask=True)["offset"].float()
    found = tier.gradients(arguments)
    for name, value in found.items():
        assert value.dtype == (dtype if name == "output" else arguments[name].dtype)
    double = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
    grad = torch.linspace(-1, 1, found["output"].numel(), dtype=dtype).reshape(found["output"].shape)
    expected = gradients(plain_deform_conv2d, double, grad)
    assert_near(found, expected, 2 * torch.finfo(dtype).eps)


LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "slice": lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
    "step": lambda x: torch.stack([x, x], -1)[..., 0],
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "batch last": lambda x: x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_layouts(tier, layout):
    arguments = make_case(batch=3, groups=2, offset_groups=3, mask=True)
    expected = tier.gradients(arguments)
    for name in ("input", "offset", "weight", "mask"):
        changed = to_device(arguments, tier.device)
        changed[name] = LAYOUTS[layout](changed[name])
        assert torch.equal(changed[name].cpu(), arguments[name])
        output = tier(**changed)
        channels_last = name == "input" and layout == "channels last"
        assert output.is_contiguous(memory_format=torch.channels_last) == channels_last
        assert_near(gradients(tier.operator, changed), expected, 1e-12)


def test_gradient_in_another_layout(tier):
    arguments = make_case()
    grad = torch.randn(2, 4, 9, 7, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    expected = tier.gradients(arguments, grad)
    for layout in LAYOUTS.values():
        assert_near(tier.gradients(arguments, layout(grad)), expected, 1e-12)
    expanded = torch.ones((), dtype=torch.float64).expand(2, 4, 9, 7)
    assert_near(tier.gradients(arguments, expanded), tier.gradients(arguments, expanded.clone()), 1e-12)


@pytest.mark.parametrize("batch", [0, 1, 31, 32, 33, 65])
def test_batch_equals_one_at_a_time(tier, batch):
    """Tests more output positions than fit in a tile, and tiles that end within an image."""
    case = make_case(batch=65, channels=32, size=(14, 14), groups=2, offset_groups=2, dtype=torch.float32)
    case["input"], case["offset"] = case["input"][:batch], case["offset"][:batch]
    grad = torch.randn(batch, 4, 14, 14, generator=torch.Generator().manual_seed(5))
    whole = tier.gradients(case, grad)
    shared = {name: torch.zeros_like(case[name]) for name in ("weight", "bias")}
    parts: dict[str, list[torch.Tensor]] = {"output": [], "input": [], "offset": []}
    for i in range(batch):
        one = {**case, "input": case["input"][i : i + 1], "offset": case["offset"][i : i + 1]}
        found = tier.gradients(one, grad[i : i + 1])
        for name, values in parts.items():
            values.append(found[name])
        for name, sum in shared.items():
            sum += found[name]
    empty = {"output": grad, "input": case["input"], "offset": case["offset"]}
    expected = {name: torch.cat(values) if values else empty[name] for name, values in parts.items()} | shared
    assert_near(whole, expected, 1e-4)


@pytest.mark.parametrize("wanted", ["input", "offset", "weight", "mask", "bias"])
def test_only_needed_gradients(tier, wanted):
    arguments = to_device(make_case(mask=True, groups=2, offset_groups=2), tier.device)
    expected = gradients(tier.operator, arguments)[wanted]
    arguments[wanted].requires_grad_()
    output = tier(**arguments)
    grad = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).reshape(output.shape).to(output)
    (found,) = torch.autograd.grad(output, [arguments[wanted]], grad)
    assert_near({wanted: found.cpu()}, {wanted: expected}, 1e-12)
