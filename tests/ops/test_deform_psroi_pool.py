"""Values and gradients of deformable position-sensitive RoI pooling, for every available tier."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dcn_det.ops import deform_psroi_pool
from dcn_det.ops.reference import deform_psroi_pool as reference
from tests.ops.pooling_tiers import (
    BAD_ROIS,
    TIERS,
    assert_near,
    gradients,
    pooling_golden,
    random,
    random_rois,
    use_tier,
)

GOLDENS = sorted((Path(__file__).parent / "goldens").glob("pool_*.npz"))


@pytest.fixture(params=TIERS)
def device(request, monkeypatch) -> torch.device:
    return use_tier("deform_psroi_pool", request.param, monkeypatch)


def options(**changes) -> dict:
    defaults = {
        "spatial_scale": 1 / 16,
        "output_dim": 4,
        "group_size": 2,
        "pooled_size": 4,
        "part_size": 4,
        "samples_per_bin": 4,
        "offset_std": 0.1,
    }
    assert changes.keys() <= defaults.keys()
    return defaults | changes


def make_case(classes=2, rois=7, size=(13, 17), batch=2, dtype=torch.float64, spread=1.0, **changes) -> tuple:
    """Returns tensors and options; ``classes=0`` means no offsets."""
    settings = options(**changes)
    scale, part = settings["spatial_scale"], settings["part_size"]
    channels = settings["output_dim"] * settings["group_size"] ** 2
    coordinates = torch.float64 if dtype == torch.float64 else torch.float32
    tensors = {
        "input": random(batch, channels, *size, dtype=dtype),
        "rois": random_rois(rois, batch, size[0] / scale, size[1] / scale).to(coordinates),
        "offset": random(rois, 2 * classes, part, part, seed=1, dtype=dtype) * spread if classes else None,
    }
    return tensors, settings


def run(tensors: dict, settings: dict, device: torch.device, grad=None) -> dict:
    """Returns the output and the gradients of input and offset."""
    rois = tensors["rois"].to(device)
    leaves = {k: v.to(device) for k, v in tensors.items() if k != "rois" and v is not None}
    return gradients(lambda **leaves: deform_psroi_pool(rois=rois, **leaves, **settings), leaves, grad)


CASES: dict[str, dict[str, Any]] = {
    "R-FCN scores": {"classes": 4},
    "many regions": {"classes": 4, "rois": 50, "batch": 3},
    "several channels of a class": {"classes": 2, "output_dim": 6, "rois": 20},
    "R-FCN boxes": {"classes": 1, "output_dim": 8, "group_size": 4},
    "no offsets": {"classes": 0, "output_dim": 6, "group_size": 4},
    "Faster R-CNN": {"classes": 1, "output_dim": 40, "group_size": 1},
    "odd number of channels": {"classes": 1, "output_dim": 75, "group_size": 1},
    "classes of channels": {"classes": 3, "output_dim": 33, "group_size": 1},
    "few channels": {"classes": 1, "output_dim": 3, "group_size": 1},
    "fewer parts": {"pooled_size": 6, "part_size": 3, "group_size": 3},
    "more parts": {"pooled_size": 3, "part_size": 5, "group_size": 2},
    "more groups": {"pooled_size": 2, "part_size": 2, "group_size": 5},
    "one bin": {"pooled_size": 1, "part_size": 1, "group_size": 1, "samples_per_bin": 3},
    "one sample": {"samples_per_bin": 1},
    "many samples": {"samples_per_bin": 9},
    "far offsets": {"spread": 20.0},
    "one row": {"size": (1, 9)},
    "one cell": {"size": (1, 1)},
    "wide bins": {"pooled_size": 2, "part_size": 2, "group_size": 2, "size": (45, 50), "rois": 20},
    "narrow map": {"classes": 4, "size": (9, 3), "rois": 20},
    "far samples": {"classes": 1, "output_dim": 9, "group_size": 1, "pooled_size": 2, "part_size": 2},
}


@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.stem)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_matches_the_released_operator(path, layout, device):
    tensors, settings, grad, expected = pooling_golden(path)
    tensors["input"] = tensors["input"].contiguous(memory_format=layout)
    assert_near(run(tensors, settings, device, grad), expected, 2e-5)


def test_all_goldens_are_there():
    assert len(GOLDENS) == 5


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_matches_autograd_of_the_reference(changes, device):
    tensors, settings = make_case(**changes)
    expected = gradients(
        lambda input, offset=None: reference.deform_psroi_pool(input, tensors["rois"], offset, *settings.values()),
        {k: v for k, v in tensors.items() if k != "rois"},
    )
    assert_near(run(tensors, settings, device), expected, 1e-11)


@pytest.mark.parametrize("name", ["R-FCN scores", "fewer parts", "far samples"])
def test_gradcheck(name, device):
    tensors, settings = make_case(rois=3, size=(7, 6), batch=1, **CASES[name])
    rois = tensors.pop("rois").to(device)
    assert torch.autograd.gradcheck(
        lambda input, offset: deform_psroi_pool(input, rois, offset, **settings),
        [leaf.to(device).requires_grad_() for leaf in tensors.values()],
        nondet_tol=1e-12 if device.type == "cuda" else 0.0,
        fast_mode=True,
    )


def test_constant_map_pools_to_the_constant(device):
    tensors, settings = make_case(rois=2, spread=0.1)
    tensors["rois"] = torch.tensor([[0.0, 40, 40, 200, 150], [1, 60, 50, 150, 140]]).double()
    tensors["input"] = torch.full_like(tensors["input"], 3.25)
    found = run(tensors, settings, device)
    torch.testing.assert_close(found["output"], torch.full_like(found["output"], 3.25))
    assert found["offset"].abs().max() < 1e-12


def test_ramp_is_sampled_exactly_and_tells_the_offsets(device):
    # On the map F = x, a bin is the mean of its samples' x, and moves by offset_std * width per unit of offset.
    settings = options(output_dim=1, group_size=1, pooled_size=2, part_size=2, offset_std=0.25)
    offset = torch.tensor([[[[0.2, -0.3], [0.1, 0.4]], [[0.5, 0.1], [-0.2, 0.3]]]]).double()
    tensors = {
        "input": torch.arange(30, dtype=torch.float64).expand(1, 1, 20, 30).contiguous(),
        "rois": torch.tensor([[0.0, 16 * 8, 16 * 5, 16 * 16 - 1, 16 * 11 - 1]]).double(),
        "offset": offset,
    }
    found = run(tensors, settings, device, torch.ones(1, 1, 2, 2))
    # The region starts at 8 - 0.5 and is 8 wide; a bin of 4 has samples 0, 1, 2 and 3 cells from its start.
    middle = 7.5 + torch.tensor([0.0, 4.0]).double() + 1.5
    torch.testing.assert_close(found["output"][0, 0], middle + 0.25 * 8 * offset[0, 0])
    torch.testing.assert_close(found["offset"][0, 0], torch.full((2, 2), 0.25 * 8).double())
    assert found["offset"][0, 1].abs().max() == 0


@pytest.mark.parametrize("classes", [1, 2, 4])
def test_zero_offsets_are_no_offsets(classes, device):
    tensors, settings = make_case(classes=classes)
    zero = run(tensors | {"offset": torch.zeros_like(tensors["offset"])}, settings, device)
    none = run(tensors | {"offset": None}, settings, device)
    assert torch.equal(zero["output"], none["output"])
    assert_near({"input": zero["input"]}, {"input": none["input"]}, 1e-14)


def test_corners_are_rounded_half_away_from_zero_and_the_far_one_is_included(device):
    ramp = torch.arange(40, dtype=torch.float64).expand(1, 1, 40, 40).contiguous()
    settings = options(output_dim=1, group_size=1, pooled_size=1, part_size=1, samples_per_bin=2, spatial_scale=1.0)
    rois = torch.tensor([[0, 2.5, 5, 8.5, 9], [0, 3, 5, 9, 9], [0, 3.49, 5, 8.51, 9], [0, 4, 5, 4, 9]]).double()
    pooled = deform_psroi_pool(ramp.to(device), rois.to(device), **settings).flatten().cpu()
    # [3, 9] is 7 cells, sampled at 2.5 and 6; [4, 4] is one, sampled at 3.5 and 4.
    torch.testing.assert_close(pooled, torch.tensor([4.25, 4.25, 4.25, 3.75]).double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_regions_that_are_not_finite_or_far_outside_are_zero(dtype, device):
    tensors, settings = make_case(rois=len(BAD_ROIS), dtype=dtype)
    found = run(tensors | {"rois": BAD_ROIS}, settings, device)
    assert all(not value.any() for value in found.values())


@pytest.mark.parametrize(("channels", "classes"), [(2, 2), (4, 1), (16, 1)])
def test_region_whose_extent_overflows_is_zero(channels, classes, device):
    settings = options(output_dim=channels, group_size=1, spatial_scale=1.0)
    part = settings["part_size"]
    rois = torch.tensor([[0, -3e38, -3e38, 3e38, 3e38], [0, 1, 1, 5, 5.0]])
    tensors = {"input": torch.ones(1, channels, 9, 9), "rois": rois, "offset": torch.zeros(2, 2 * classes, part, part)}
    output = run(tensors, settings, device)["output"]
    assert not output[0].any() and (output[1] == 1).all()


def test_offsets_that_are_not_finite_read_nothing(device):
    tensors, settings = make_case(classes=1, rois=3)
    tensors["offset"][0], tensors["offset"][1] = float("nan"), float("inf")
    found = run(tensors, settings, device)
    assert not found["output"][:2].any() and found["output"][2].any()
    assert all(value.isfinite().all() for value in found.values())


@pytest.mark.parametrize("channels", [1, 8])
def test_cells_that_are_not_sampled_do_not_matter(channels, device):
    # The right half of the region is outside the map: its samples do not read the adjacent border.
    settings = options(output_dim=channels, group_size=1, pooled_size=4, part_size=4)
    input = torch.ones(1, channels, 8, 8, dtype=torch.float64)
    input[..., 6:] = float("nan")
    rois = torch.tensor([[0.0, 16 * 2, 16, 16 * 18 - 1, 63]]).double()
    tensors = {"input": input, "rois": rois, "offset": torch.zeros(1, 2, 4, 4).double()}
    found = run(tensors, settings, device)
    assert (found["output"][..., 0] == 1).all() and not found["output"][..., 2:].any()
    assert not found["offset"][..., 2:].any() and found["input"].isfinite().all()


@pytest.mark.parametrize("index", [-1, 2, float("nan"), 1e30])
def test_image_index_outside_the_batch(index, device):
    tensors, settings = make_case(rois=3)
    tensors["rois"][1, 0] = index
    if device.type == "cpu":
        message = r"rois is of image .* in row 1; expected one of the input's 2 images"
        with pytest.raises(ValueError, match=message):
            run(tensors, settings, device)
    else:
        found = run(tensors, settings, device)
        assert not found["output"][1].any() and not found["offset"][1].any()


@pytest.mark.parametrize("index", [-1, 2, float("nan"), 1e30])
def test_operator_itself_gives_zero_for_an_image_that_does_not_exist(index):
    tensors, settings = make_case(rois=3)
    tensors["rois"][1, 0] = index
    arguments = (*tensors.values(), *settings.values())
    for operator in (torch.ops.dcn_det.deform_psroi_pool, reference.deform_psroi_pool):
        output = operator(*arguments)
        assert not output[1].any() and output[0].any()


@pytest.mark.parametrize(
    ("batch", "rois", "size"),
    [(2, 0, (5, 6)), (0, 0, (5, 6)), (1, 3, (0, 6)), (1, 3, (5, 0)), (1, 0, (0, 0))],
)
def test_empty(batch, rois, size, device):
    tensors = {
        "input": torch.zeros(batch, 16, *size),
        "rois": torch.tensor([[0.0, 0, 0, 40, 40]]).expand(rois, 5),
        "offset": torch.zeros(rois, 4, 4, 4),
    }
    found = run(tensors, options(), device)
    assert found["output"].shape == (rois, 4, 4, 4)
    assert all(found[k].shape == tensors[k].shape for k in ("input", "offset"))
    assert all(not value.any() for value in found.values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["R-FCN scores", "Faster R-CNN"])
def test_half_precision_is_computed_in_float32(dtype, name, device):
    tensors, settings = make_case(dtype=torch.float32, **CASES[name])
    half = tensors | {k: tensors[k].to(dtype) for k in ("input", "offset")}
    found = run(half, settings, device)
    assert all(value.dtype == dtype for value in found.values())
    grad = random(*found["output"].shape, seed=99, dtype=dtype)
    expected = run({k: v.float() for k, v in half.items()}, settings, device, grad)
    assert_near(found, expected, torch.finfo(dtype).eps)


def test_gradient_has_the_strides_of_the_input(device):
    tensors, settings = make_case(classes=1, output_dim=9, group_size=1)
    for layout in (torch.contiguous_format, torch.channels_last):
        input = tensors["input"].to(device).clone(memory_format=layout).requires_grad_()
        deform_psroi_pool(input, tensors["rois"].to(device), **settings).sum().backward()
        assert input.grad.stride() == input.stride()


def test_arguments_need_not_be_contiguous(device):
    tensors, settings = make_case()
    expected = run(tensors, settings, device)
    strided = {k: v.repeat_interleave(2, -1)[..., ::2] for k, v in tensors.items()}
    assert not any(tensor.is_contiguous() for tensor in strided.values())
    grad = random(*expected["output"].shape, seed=99).mT.contiguous().mT
    assert_near(run(strided, settings, device, grad), expected, 1e-14)


def test_needed_gradients_only(device):
    tensors, settings = make_case()
    for name in ("input", "offset"):
        leaves = {k: v.to(device).clone().requires_grad_(k == name) for k, v in tensors.items()}
        deform_psroi_pool(**leaves, **settings).sum().backward()
        assert [k for k, leaf in leaves.items() if leaf.grad is not None] == [name]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_deterministic_algorithms_are_heeded():
    tensors, settings = make_case(dtype=torch.float32, rois=60, **CASES["Faster R-CNN"])
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (run(tensors, settings, torch.device("cuda")) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(first[k], second[k]) for k in first)
