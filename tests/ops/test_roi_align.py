"""RoI align, for every available tier."""

from typing import Any

import pytest
import torch
import torchvision

from dcn_det.ops import RoIAlign, roi_align
from dcn_det.ops.reference import roi_align as reference
from tests.ops.pooling_tiers import (
    BAD_ROIS,
    TIERS,
    assert_near,
    gradients,
    random,
    random_rois,
    use_tier,
)

LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.fixture(params=TIERS)
def device(request, monkeypatch) -> torch.device:
    return use_tier("roi_align", request.param, monkeypatch)


def make_case(channels=5, rois=30, size=(9, 12), batch=2, dtype=torch.float64, scale=1 / 16) -> dict:
    coordinates = torch.float64 if dtype == torch.float64 else torch.float32
    return {
        "input": random(batch, channels, *size, dtype=dtype),
        "rois": random_rois(rois, batch, size[0] / scale, size[1] / scale).to(coordinates),
    }


def run(tensors: dict, device: torch.device, grad=None, spatial_scale=1 / 16, pooled_size=3, **options) -> dict:
    rois = tensors["rois"].to(device)
    return gradients(
        lambda input: roi_align(input, rois, spatial_scale=spatial_scale, pooled_size=pooled_size, **options),
        {"input": tensors["input"].to(device)},
        grad,
    )


def run_torchvision(tensors: dict, pooled_size: int, scale: float, ratio: int, aligned: bool) -> dict:
    return gradients(
        lambda input: torchvision.ops.roi_align(input, tensors["rois"], pooled_size, scale, ratio, aligned),
        {"input": tensors["input"]},
    )


CASES = {
    "plain": ({}, 3),
    "many bins": ({}, 7),
    "one bin": ({}, 1),
    "one channel": ({"channels": 1}, 2),
    "many channels": ({"channels": 75}, 2),
    "a multiple of the tile": ({"channels": 48, "size": (20, 31)}, 2),
    "other stride": ({"scale": 1 / 10}, 3),
    "one row": ({"size": (1, 7)}, 2),
    "one cell": ({"size": (1, 1)}, 2),
    "an image without regions": ({"rois": 1}, 3),
}


@pytest.mark.parametrize(("changes", "pooled_size"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("ratio", [0, 1, 2, 5])
@pytest.mark.parametrize("aligned", [True, False])
def test_matches_torchvision(changes, pooled_size, layout, ratio, aligned, device):
    tensors, scale = make_case(**changes), changes.get("scale", 1 / 16)
    expected = run_torchvision(tensors, pooled_size, scale, ratio, aligned)
    tensors["input"] = tensors["input"].contiguous(memory_format=layout)
    options = {"spatial_scale": scale, "pooled_size": pooled_size, "sampling_ratio": ratio, "aligned": aligned}
    assert_near(run(tensors, device, **options), expected, 1e-11)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 2])
def test_thin_turned_and_huge_regions_are_as_in_torchvision(ratio, aligned, device):
    tensors = make_case()
    tensors["rois"] = torch.tensor(
        [
            [0, 30, 40, 30, 40],
            [1, 30, 40, 31, 90.5],
            [0, 90, 70, 30, 40],
            [1, -16, -16, -8, 100],
            [1, 16 * 12, 16 * 9, 16 * 14, 16 * 11],
            [0, -9000, -7000, 8000, 9500],
            [0, 0, 0, 16 * 12, 16 * 9],
        ]
    ).double()
    expected = run_torchvision(tensors, 3, 1 / 16, ratio, aligned)
    assert_near(run(tensors, device, sampling_ratio=ratio, aligned=aligned), expected, 1e-11)


def test_gradcheck(device):
    tensors = make_case(rois=4, channels=2)
    rois = tensors["rois"].to(device)
    assert torch.autograd.gradcheck(
        lambda input: roi_align(input, rois, spatial_scale=1 / 16, pooled_size=3),
        [tensors["input"].to(device).requires_grad_()],
        nondet_tol=1e-12 if device.type == "cuda" else 0.0,
        fast_mode=True,
    )


def test_ramp_is_sampled_exactly(device):
    ramp = torch.arange(40, dtype=torch.float64).expand(1, 1, 40, 40).contiguous().to(device)
    rois = torch.tensor([[0.0, 8, 8, 24, 20]]).double().to(device)
    for aligned, shift in ((True, 0.5), (False, 0.0)):
        pooled = roi_align(ramp, rois, spatial_scale=1.0, pooled_size=2, aligned=aligned)[0, 0].cpu()
        torch.testing.assert_close(pooled, torch.tensor([[12.0, 20.0]] * 2).double() - shift)


@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_regions_that_are_not_finite_or_far_outside_are_zero(dtype, ratio, device):
    found = run(make_case(dtype=dtype) | {"rois": BAD_ROIS}, device, sampling_ratio=ratio)
    assert all(not value.any() for value in found.values())


@pytest.mark.parametrize("corner", [1e7, 1e12, 3e38])
def test_region_far_larger_than_the_map_ends_soon_and_is_nearly_zero(corner, device):
    rois = torch.tensor([[0.0, -corner, -corner, corner, corner]])
    found = run(make_case(dtype=torch.float32) | {"rois": rois}, device)
    assert all(value.abs().max() < 1e-2 for value in found.values())


def test_cells_that_are_not_sampled_do_not_matter(device):
    input = torch.ones(1, 9, 8, 8, dtype=torch.float64)
    input[..., 5:], input[..., 5:, :] = float("nan"), float("inf")
    rois = torch.tensor([[0.0, 1, 1, 4.5, 4.5]]).double()
    found = run({"input": input, "rois": rois}, device, spatial_scale=1.0, sampling_ratio=2)
    torch.testing.assert_close(found["output"], torch.ones_like(found["output"]))


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


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype, layout, device):
    tensors = make_case(dtype=dtype)
    tensors["input"] = tensors["input"].contiguous(memory_format=layout)
    found = run(tensors, device)
    grad = random(*found["output"].shape, seed=99, dtype=dtype)
    expected = run(tensors | {"input": tensors["input"].float()}, device, grad)
    assert all(value.dtype == dtype for value in found.values())
    assert_near(found, expected, torch.finfo(dtype).eps)


@pytest.mark.parametrize("index", [-1, 2, float("nan"), 1e30])
def test_operator_itself_gives_zero_for_an_image_that_does_not_exist(index):
    tensors = make_case(rois=3)
    tensors["rois"][1, 0] = index
    for operator in (torch.ops.dcn_det.roi_align, reference.roi_align):
        output = operator(tensors["input"], tensors["rois"], 1 / 16, 3, 0, True)
        assert not output[1].any() and output[0].any()


ERRORS = {
    "sizes": ({"pooled_size": 0}, "pooled_size is 0; expected an int from 1"),
    "ratio": ({"sampling_ratio": -1}, "sampling_ratio is -1; expected an int from 0"),
    "scale": ({"spatial_scale": float("inf")}, "spatial_scale is inf; expected a positive number"),
    "input": ({"input": torch.zeros(5, 5)}, r"input is of shape \(5, 5\); expected 4 dimensions"),
    "rois": ({"rois": torch.zeros(3, 6)}, r"rois is of shape \(3, 6\); expected \(R, 5\)"),
    "rois device": ({"rois": torch.zeros(3, 5, device="meta")}, "rois is on meta; expected cpu"),
    "image": ({"rois": torch.full((3, 5), -1.0)}, "rois is of image -1 in row 0; expected one of the"),
}


@pytest.mark.parametrize(("changes", "message"), ERRORS.values(), ids=ERRORS)
@pytest.mark.parametrize("tier", ["cpu", "plain"])
def test_errors_tell_argument_and_expectation(changes, message, tier, monkeypatch):
    use_tier("roi_align", tier, monkeypatch)
    arguments = {"input": torch.zeros(2, 3, 5, 5), "rois": torch.zeros(3, 5), "spatial_scale": 1, "pooled_size": 2}
    with pytest.raises(ValueError, match=rf"^roi_align: {message}"):
        roi_align(**(arguments | changes))


def test_shapes_alone_are_checked_as_values_are():
    def operator(input_size, rois, dtype, sampling_ratio=2):
        arguments = torch.zeros(input_size, device="meta"), torch.zeros(rois, device="meta", dtype=dtype)
        return torch.ops.dcn_det.roi_align(*arguments, 1 / 16, 3, sampling_ratio, True)

    assert operator((2, 3, 5, 5), (4, 5), torch.float32).shape == (4, 3, 3, 3)
    with pytest.raises(ValueError, match=r"input is of shape \(3, 5, 5\)"):
        operator((3, 5, 5), (4, 5), torch.float32)
    with pytest.raises(ValueError, match=r"rois is of shape \(4, 4\)"):
        operator((2, 3, 5, 5), (4, 4), torch.float32)
    with pytest.raises(ValueError, match=r"rois is torch\.float64; expected torch\.float32"):
        operator((2, 3, 5, 5), (4, 5), torch.float64)
    with pytest.raises(ValueError, match="sampling_ratio is -1"):
        operator((2, 3, 5, 5), (4, 5), torch.float32, -1)
    with pytest.raises(ValueError, match="grad_output is of shape"):
        grad, rois = torch.zeros(3, 2, 4, 4, device="meta"), torch.zeros(4, 5, device="meta")
        torch.ops.dcn_det.roi_align_backward(grad, rois, 1, 5, 5, 1.0, 0, True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(layout):
    tensors = make_case(rois=3)
    tensors["input"] = tensors["input"].contiguous(memory_format=layout).requires_grad_()
    torch.library.opcheck(torch.ops.dcn_det.roi_align, (*tensors.values(), 1 / 16, 3, 0, True))
    grad = torch.ones(3, 5, 3, 3, dtype=torch.float64)
    torch.library.opcheck(torch.ops.dcn_det.roi_align_backward, (grad, tensors["rois"], 2, 9, 12, 1 / 16, 2, False))


def test_compiles_without_a_graph_break():
    tensors = make_case(dtype=torch.float32)
    compiled = torch.compile(roi_align, fullgraph=True, backend="aot_eager", dynamic=True)

    def call(function, rois):
        return gradients(
            lambda input: function(input, rois, spatial_scale=1 / 16, pooled_size=3), {"input": tensors["input"]}
        )

    for count in (6, 4):
        rois = tensors["rois"][:count].float()
        assert_near(call(compiled, rois), call(roi_align, rois), 1e-6)


def test_autocast_casts_features_and_leaves_coordinates():
    tensors = make_case(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = roi_align(**tensors, spatial_scale=1 / 16, pooled_size=3)
    expected = roi_align(tensors["input"].bfloat16(), tensors["rois"], spatial_scale=1 / 16, pooled_size=3)
    assert found.dtype == torch.bfloat16 and torch.equal(found, expected)


def test_double_backward_says_that_there_is_none():
    tensors = make_case()
    leaf = tensors["input"].requires_grad_()
    output = roi_align(**tensors, spatial_scale=1 / 16, pooled_size=3).square().sum()
    (grad,) = torch.autograd.grad(output, leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="roi_align: double backward"):
        grad.sum().backward()


def test_module_is_the_function():
    tensors = make_case()
    options: dict[str, Any] = {"spatial_scale": 1 / 16, "pooled_size": 3, "sampling_ratio": 2, "aligned": False}
    module = RoIAlign(**options)
    assert torch.equal(module(**tensors), roi_align(**tensors, **options))
    assert "sampling_ratio=2, aligned=False" in repr(module)
