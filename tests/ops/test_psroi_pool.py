"""Position-sensitive RoI pooling, for every available tier."""

import math

import pytest
import torch

from dcn_det.ops import PSRoIPool, psroi_pool
from tests.ops.pooling_tiers import (
    BAD_ROIS,
    TIERS,
    assert_near,
    gradients,
    random,
    random_rois,
    use_tier,
)


@pytest.fixture(params=TIERS)
def device(request, monkeypatch) -> torch.device:
    return use_tier("psroi_pool", request.param, monkeypatch)


def options(**changes) -> dict:
    defaults = {"spatial_scale": 1 / 16, "output_dim": 3, "group_size": 2, "pooled_size": 4}
    assert changes.keys() <= defaults.keys()
    return defaults | changes


def make_case(rois=6, size=(9, 12), batch=2, dtype=torch.float64, **changes) -> tuple:
    settings = options(**changes)
    channels = settings["output_dim"] * settings["group_size"] ** 2
    scale = settings["spatial_scale"]
    tensors = {
        "input": random(batch, channels, *size, dtype=dtype),
        "rois": random_rois(rois, batch, size[0] / scale, size[1] / scale),
    }
    return tensors, settings


def run(tensors: dict, settings: dict, device: torch.device, grad=None) -> dict:
    rois = tensors["rois"].to(device)
    leaves = {"input": tensors["input"].to(device)}
    return gradients(lambda input: psroi_pool(input, rois, **settings), leaves, grad)


def round_half_away(value: float) -> float:
    return math.copysign(math.floor(abs(value) + 0.5), value)


def by_loops(input, rois, spatial_scale, output_dim, group_size, pooled_size, grad):
    """Implements the definition, cell by cell; returns the output and the input's gradient."""
    _, _, height, width = input.shape
    output = torch.zeros(len(rois), output_dim, pooled_size, pooled_size, dtype=torch.float64)
    grad_input = torch.zeros_like(input)
    for r, (image, *corners) in enumerate(rois.tolist()):
        x1, y1 = (round_half_away(c) * spatial_scale for c in corners[:2])
        x2, y2 = ((round_half_away(c) + 1) * spatial_scale for c in corners[2:])
        bin_width, bin_height = max(x2 - x1, 0.1) / pooled_size, max(y2 - y1, 0.1) / pooled_size
        for i in range(pooled_size):
            top, bottom = math.floor(y1 + i * bin_height), math.ceil(y1 + (i + 1) * bin_height)
            for j in range(pooled_size):
                left, right = math.floor(x1 + j * bin_width), math.ceil(x1 + (j + 1) * bin_width)
                cells = [
                    (y, x)
                    for y in range(max(top, 0), min(bottom, height))
                    for x in range(max(left, 0), min(right, width))
                ]
                for o in range(output_dim):
                    row, column = i * group_size // pooled_size, j * group_size // pooled_size
                    channel = (o * group_size + row) * group_size + column
                    for y, x in cells:
                        output[r, o, i, j] += input[int(image), channel, y, x] / len(cells)
                        grad_input[int(image), channel, y, x] += grad[r, o, i, j] / len(cells)
    return {"output": output, "input": grad_input}


CASES = {
    "plain": {},
    "as many groups as bins": {"group_size": 4},
    "one group": {"group_size": 1, "pooled_size": 3},
    "more groups than bins": {"group_size": 3, "pooled_size": 2},
    "one bin": {"group_size": 1, "pooled_size": 1},
    "other stride": {"spatial_scale": 1 / 10},
    "one row": {"size": (1, 7)},
    "one cell": {"size": (1, 1)},
}


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_matches_loops(changes, layout, device):
    tensors, settings = make_case(**changes)
    grad = random(6, settings["output_dim"], settings["pooled_size"], settings["pooled_size"], seed=2)
    expected = by_loops(**tensors, **settings, grad=grad)
    tensors["input"] = tensors["input"].contiguous(memory_format=layout)
    assert_near(run(tensors, settings, device, grad), expected, 1e-12)


def test_gradcheck(device):
    tensors, settings = make_case(rois=3)
    rois = tensors["rois"].to(device)
    assert torch.autograd.gradcheck(
        lambda input: psroi_pool(input, rois, **settings),
        tensors["input"].to(device).requires_grad_(),
        fast_mode=True,
        nondet_tol=1e-12 if device.type == "cuda" else 0.0,
    )


def test_constant_map_pools_to_the_constant(device):
    tensors, settings = make_case()
    rois = torch.tensor([[0.0, 10, 20, 100, 90], [1, 0, 0, 15, 15]])
    pooled = psroi_pool(torch.full_like(tensors["input"], 2.5).to(device), rois.to(device), **settings)
    torch.testing.assert_close(pooled, torch.full_like(pooled, 2.5))


def test_corners_are_rounded_half_away_from_zero_and_the_far_one_is_included(device):
    ramp = torch.arange(12, dtype=torch.float64).expand(1, 1, 12, 12).contiguous()
    settings = options(output_dim=1, group_size=1, pooled_size=1, spatial_scale=1.0)
    rois = torch.tensor([[0, 2.5, 5, 8.5, 9], [0, 3, 5, 9, 9], [0, 3.49, 5, 8.51, 9], [0, 4, 5, 4, 9]]).double()
    pooled = psroi_pool(ramp.to(device), rois.to(device), **settings).flatten().cpu()
    torch.testing.assert_close(pooled, torch.tensor([6.0, 6, 6, 4]).double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_regions_that_are_not_finite_or_far_outside_are_zero(dtype, device):
    tensors, settings = make_case(dtype=dtype)
    found = run(tensors | {"rois": BAD_ROIS}, settings, device)
    assert all(not value.any() for value in found.values())


@pytest.mark.parametrize(
    ("batch", "rois", "size"),
    [(2, 0, (5, 6)), (0, 0, (5, 6)), (1, 3, (0, 6)), (1, 3, (5, 0)), (1, 0, (0, 0))],
)
def test_empty(batch, rois, size, device):
    tensors = {
        "input": torch.zeros(batch, 12, *size),
        "rois": torch.tensor([[0.0, 0, 0, 40, 40]]).expand(rois, 5),
    }
    found = run(tensors, options(), device)
    assert found["output"].shape == (rois, 3, 4, 4) and found["input"].shape == tensors["input"].shape
    assert all(not value.any() for value in found.values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype, device):
    tensors, settings = make_case(dtype=dtype)
    tensors["rois"] = tensors["rois"].float()
    found = run(tensors, settings, device)
    assert all(value.dtype == dtype for value in found.values())
    grad = random(*found["output"].shape, seed=99, dtype=dtype)
    expected = run(tensors | {"input": tensors["input"].float()}, settings, device, grad)
    assert_near(found, expected, torch.finfo(dtype).eps)


ERRORS = {
    "sizes": ({"pooled_size": 0}, {}, "pooled_size is 0; expected an int from 1"),
    "scale": ({"spatial_scale": -1.0}, {}, "spatial_scale is -1.0; expected a positive number"),
    "channels": ({"group_size": 3}, {}, r"input is of 12 channels; expected 27, output_dim \* group_size"),
    "input": ({}, {"input": torch.zeros(12, 5, 5)}, r"input is of shape \(12, 5, 5\); expected 4 dimensions"),
    "input dtype": ({}, {"input": torch.zeros(2, 12, 5, 5).bool()}, "input is torch.bool; expected float32"),
    "rois": ({}, {"rois": torch.zeros(5)}, r"rois is of shape \(5,\); expected \(R, 5\)"),
    "rois dtype": ({}, {"rois": torch.zeros(3, 5).int()}, "rois is torch.int32; expected float32"),
    "rois device": ({}, {"rois": torch.zeros(3, 5, device="meta")}, "rois is on meta; expected cpu"),
    "image": ({}, {"rois": torch.full((3, 5), 2.0)}, "rois is of image 2 in row 0; expected one of the"),
}


@pytest.mark.parametrize(("settings", "tensors", "message"), ERRORS.values(), ids=ERRORS)
@pytest.mark.parametrize("tier", ["cpu", "plain"])
def test_errors_tell_argument_and_expectation(settings, tensors, message, tier, monkeypatch):
    use_tier("psroi_pool", tier, monkeypatch)
    arguments = {"input": torch.zeros(2, 12, 5, 5), "rois": torch.zeros(3, 5)}
    with pytest.raises(ValueError, match=rf"^psroi_pool: {message}"):
        psroi_pool(**(arguments | tensors), **options(**settings))


def test_opcheck():
    tensors, settings = make_case(rois=3)
    tensors["input"].requires_grad_()
    torch.library.opcheck(torch.ops.dcn_det.psroi_pool, (*tensors.values(), *settings.values()))
    grad = torch.ones(3, 3, 4, 4, dtype=torch.float64)
    torch.library.opcheck(
        torch.ops.dcn_det.psroi_pool_backward, (grad, tensors["rois"], 2, 9, 12, settings["spatial_scale"], 2)
    )


def test_compiles_without_a_graph_break():
    tensors, settings = make_case(dtype=torch.float32)
    compiled = torch.compile(psroi_pool, fullgraph=True, backend="aot_eager", dynamic=True)

    def call(function, rois):
        return gradients(lambda input: function(input, rois, **settings), {"input": tensors["input"]})

    for count in (6, 4):
        rois = tensors["rois"][:count].float()
        assert_near(call(compiled, rois), call(psroi_pool, rois), 1e-6)


def test_autocast_casts_features_and_leaves_coordinates():
    tensors, settings = make_case(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = psroi_pool(**tensors, **settings)
    expected = psroi_pool(tensors["input"].bfloat16(), tensors["rois"], **settings)
    assert found.dtype == torch.bfloat16 and torch.equal(found, expected)


def test_double_backward_says_that_there_is_none():
    tensors, settings = make_case()
    leaf = tensors["input"].requires_grad_()
    output = psroi_pool(**tensors, **settings).square().sum()
    (grad,) = torch.autograd.grad(output, leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="psroi_pool: double backward"):
        grad.sum().backward()


def test_module_is_the_function():
    tensors, settings = make_case()
    module = PSRoIPool(**settings)
    assert torch.equal(module(**tensors), psroi_pool(**tensors, **settings))
    assert "group_size=2" in repr(module)
