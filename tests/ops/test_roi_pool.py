"""RoI max pooling, for every available tier."""

import pytest
import torch
import torchvision

from dcn_det.ops import RoIPool, roi_pool
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
    return use_tier("roi_pool", request.param, monkeypatch)


def make_case(channels=5, rois=30, size=(9, 12), batch=2, dtype=torch.float64, scale=1 / 16) -> dict:
    return {
        "input": random(batch, channels, *size, dtype=dtype),
        "rois": random_rois(rois, batch, size[0] / scale, size[1] / scale),
    }


def run(tensors: dict, device: torch.device, grad=None, spatial_scale=1 / 16, pooled_size=3) -> dict:
    rois = tensors["rois"].to(device)
    leaves = {"input": tensors["input"].to(device)}
    return gradients(
        lambda input: roi_pool(input, rois, spatial_scale=spatial_scale, pooled_size=pooled_size),
        leaves,
        grad,
    )


CASES = {
    "plain": ({}, 3),
    "many bins": ({}, 7),
    "one bin": ({}, 1),
    "one channel": ({"channels": 1}, 2),
    "many channels": ({"channels": 70}, 2),
    "other stride": ({"scale": 1 / 10}, 3),
    "one row": ({"size": (1, 7)}, 2),
    "one cell": ({"size": (1, 1)}, 2),
}


@pytest.mark.parametrize(("changes", "pooled_size"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("whole", [True, False])
def test_matches_torchvision(changes, pooled_size, layout, whole, device):
    tensors, scale = make_case(**changes), changes.get("scale", 1 / 16)
    if whole:
        tensors["rois"] = tensors["rois"].round()
    expected = gradients(
        lambda input: torchvision.ops.roi_pool(input, tensors["rois"], pooled_size, scale),
        {"input": tensors["input"]},
    )
    tensors["input"] = tensors["input"].contiguous(memory_format=layout)
    found = run(tensors, device, spatial_scale=scale, pooled_size=pooled_size)
    assert torch.equal(found["output"], expected["output"])
    assert_near(found, expected, 1e-12)


def test_first_of_equal_values_gets_the_gradient(device):
    tensors = make_case()
    tensors["input"] = (tensors["input"] - 1).relu()  # mostly zeros
    expected = gradients(
        lambda input: torchvision.ops.roi_pool(input, tensors["rois"], 3, 1 / 16), {"input": tensors["input"]}
    )
    assert_near(run(tensors, device), expected, 1e-12)


def test_both_corners_belong_to_the_region(device):
    input = torch.arange(64, dtype=torch.float64).view(1, 1, 8, 8).to(device)
    rois = torch.tensor([[0.0, 2, 3, 5, 6], [0, 2, 3, 2, 3], [0, 5, 6, 2, 3], [0, 2.5, 0, 2.5, 0]]).to(device)
    pooled = roi_pool(input, rois, spatial_scale=1.0, pooled_size=1).flatten().tolist()
    assert pooled == [6 * 8 + 5, 3 * 8 + 2, 6 * 8 + 5, 3]


def test_nan_is_the_largest_value(device):
    input = torch.zeros(1, 10, 4, 4)
    input[0, :, 2, 1], input[0, :, 3, 3] = float("nan"), float("inf")
    rois = torch.tensor([[0.0, 0, 0, 3, 3], [0, 2, 2, 3, 3]])
    pooled = roi_pool(input.to(device), rois.to(device), spatial_scale=1.0, pooled_size=1)
    assert pooled[0].isnan().all() and (pooled[1] == float("inf")).all()


def test_least_value_is_not_lost(device):
    input = torch.full((1, 10, 4, 4), float("-inf"))
    pooled = roi_pool(input.to(device), torch.tensor([[0.0, 0, 0, 3, 3]]).to(device), spatial_scale=1.0, pooled_size=2)
    assert (pooled == float("-inf")).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_regions_that_are_not_finite_or_far_outside_are_zero(dtype, device):
    found = run(make_case(dtype=dtype) | {"rois": BAD_ROIS}, device)
    assert all(not value.any() for value in found.values())


@pytest.mark.parametrize(
    ("batch", "channels", "rois", "size"),
    [(2, 3, 0, (5, 6)), (0, 3, 0, (5, 6)), (1, 3, 3, (0, 6)), (1, 3, 3, (5, 0)), (1, 0, 3, (5, 5))],
)
def test_empty(batch, channels, rois, size, device):
    tensors = {
        "input": torch.zeros(batch, channels, *size),
        "rois": torch.tensor([[0.0, 0, 0, 40, 40]]).expand(rois, 5),
    }
    found = run(tensors, device)
    assert found["output"].shape == (rois, channels, 3, 3) and found["input"].shape == tensors["input"].shape
    assert all(not value.any() for value in found.values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype, device):
    tensors = make_case(dtype=dtype)
    found = run(tensors, device)
    grad = random(*found["output"].shape, seed=99, dtype=dtype)
    expected = run(tensors | {"input": tensors["input"].float()}, device, grad)
    assert all(value.dtype == dtype for value in found.values())
    assert torch.equal(found["output"].float(), expected["output"])
    assert_near(found, expected, torch.finfo(dtype).eps)


ERRORS = {
    "sizes": ({"pooled_size": 0}, "pooled_size is 0; expected an int from 1"),
    "scale": ({"spatial_scale": float("inf")}, "spatial_scale is inf; expected a positive number"),
    "input": ({"input": torch.zeros(5, 5)}, r"input is of shape \(5, 5\); expected 4 dimensions"),
    "input dtype": ({"input": torch.zeros(2, 3, 5, 5).long()}, "input is torch.int64; expected float32"),
    "rois": ({"rois": torch.zeros(3, 6)}, r"rois is of shape \(3, 6\); expected \(R, 5\)"),
    "rois dtype": ({"rois": torch.zeros(3, 5).int()}, "rois is torch.int32; expected float32"),
    "rois device": ({"rois": torch.zeros(3, 5, device="meta")}, "rois is on meta; expected cpu"),
    "image": ({"rois": torch.full((3, 5), -1.0)}, "rois is of image -1 in row 0; expected one of the"),
}


@pytest.mark.parametrize(("changes", "message"), ERRORS.values(), ids=ERRORS)
@pytest.mark.parametrize("tier", ["cpu", "plain"])
def test_errors_tell_argument_and_expectation(changes, message, tier, monkeypatch):
    use_tier("roi_pool", tier, monkeypatch)
    arguments = {
        "input": torch.zeros(2, 3, 5, 5),
        "rois": torch.zeros(3, 5),
        "spatial_scale": 1,
        "pooled_size": 2,
    }
    with pytest.raises(ValueError, match=rf"^roi_pool: {message}"):
        roi_pool(**(arguments | changes))


def test_opcheck():
    tensors = make_case(rois=3)
    tensors["input"].requires_grad_()
    torch.library.opcheck(torch.ops.dcn_det.roi_pool, (*tensors.values(), 1 / 16, 3))
    output, argmax = torch.ops.dcn_det.roi_pool(*tensors.values(), 1 / 16, 3)
    torch.library.opcheck(torch.ops.dcn_det.roi_pool_backward, (output.detach(), tensors["rois"], argmax, 2, 9, 12))


def test_compiles_without_a_graph_break():
    tensors = make_case(dtype=torch.float32)
    compiled = torch.compile(roi_pool, fullgraph=True, backend="aot_eager", dynamic=True)

    def call(function, rois):
        return gradients(
            lambda input: function(input, rois, spatial_scale=1 / 16, pooled_size=3),
            {"input": tensors["input"]},
        )

    for count in (6, 4):
        rois = tensors["rois"][:count].float()
        assert_near(call(compiled, rois), call(roi_pool, rois), 1e-6)


def test_autocast_casts_features_and_leaves_coordinates():
    tensors = make_case(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = roi_pool(**tensors, spatial_scale=1 / 16, pooled_size=3)
    expected = roi_pool(tensors["input"].bfloat16(), tensors["rois"], spatial_scale=1 / 16, pooled_size=3)
    assert found.dtype == torch.bfloat16 and torch.equal(found, expected)


def test_double_backward_says_that_there_is_none():
    tensors = make_case()
    leaf = tensors["input"].requires_grad_()
    output = roi_pool(**tensors, spatial_scale=1 / 16, pooled_size=3).square().sum()
    (grad,) = torch.autograd.grad(output, leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="roi_pool: double backward"):
        grad.sum().backward()


def test_module_is_the_function():
    tensors = make_case()
    module = RoIPool(spatial_scale=1 / 16, pooled_size=3)
    assert torch.equal(module(**tensors), roi_pool(**tensors, spatial_scale=1 / 16, pooled_size=3))
    assert "pooled_size=3" in repr(module)
