"""The CUDA kernels of RoI pooling, run without a GPU: values, gradients and memory accesses."""

from typing import Any

import pytest
import torch
from torch import Tensor

from dcn_det.ops.reference import deform_psroi_pool as deform_reference
from dcn_det.ops.reference import roi_align as align_reference
from dcn_det.ops.reference import roi_pooling as reference
from tests.ops.cuda_on_host import InOut, Out
from tests.ops.pooling_tiers import BAD_ROIS, assert_near, pooling_golden, random
from tests.ops.test_deform_psroi_pool import CASES, GOLDENS, make_case, options

DTYPES = [(torch.float64, 1e-11), (torch.float32, 2e-5), (torch.float16, 1e-3), (torch.bfloat16, 8e-3)]
NARROW = [{}, {"group_size": 1, "size": (1, 1)}, {"pooled_size": 7}, {"pooled_size": 2, "size": (30, 33), "rois": 20}]


def sizes_of(input: Tensor, rois: Tensor, classes=1, **settings) -> tuple[int, ...]:
    names = ("group_size", "pooled_size")
    group, pooled = (settings.get(name, 1) for name in names)
    output_dim = settings.get("output_dim", input.shape[1])
    rest = [settings.get(name, 1) for name in ("part_size", "samples_per_bin")]
    batch, _, height, width = input.shape
    return (batch, len(rois), output_dim, height, width, group, pooled, classes, *rest)


def with_bad_rois(rois: Tensor) -> Tensor:
    """Adds regions that pool to zero and images that do not exist."""
    rois = torch.cat([rois, BAD_ROIS.to(rois), rois[:3]])
    rois[-3:, 0] = torch.tensor([-1.0, 1e30, float("nan")])
    return rois


def grad_like(output: Tensor, seed: int = 5) -> Tensor:
    return random(*output.shape, seed=seed, dtype=output.dtype)


def unwritten(like: Tensor) -> Tensor:
    return torch.full_like(like, torch.nan if like.is_floating_point() else -7)


def deform_on_host(host, tensors, settings, grad, *, blocks=0, lanes=8, deterministic=False, seed=0) -> dict:
    """Returns the output and the gradients of input and offset."""
    input, rois, offset = (tensors[name] for name in ("input", "rois", "offset"))
    dtype = input.dtype
    offset = None if offset is None else offset.to(rois.dtype)
    sizes = sizes_of(input, rois, 1 if offset is None else offset.shape[1] // 2, **settings)
    scale, std = settings["spatial_scale"], settings["offset_std"]
    found = {"output": unwritten(grad), "input": torch.zeros_like(input, dtype=rois.dtype)}
    regions = (rois, offset)
    host("deform_psroi_pool", dtype, sizes, blocks, scale, std, input, *regions, Out(found["output"]), seed=seed)
    owns_offsets = sizes[7] == sizes[2] and sizes[8] == sizes[6]
    together = unwritten(offset) if offset is not None and owns_offsets else None
    head = (dtype, sizes, blocks, deterministic, scale, std, grad, input)
    results = (InOut(found["input"]), None if together is None else Out(together))
    host("deform_psroi_pool_backward", *head, *regions, *results, seed=seed)
    if offset is not None:
        found["offset"] = unwritten(offset)
        head = (dtype, sizes, blocks, lanes, scale, std, grad, input)
        host("deform_psroi_pool_grad_offset", *head, *regions, Out(found["offset"]), seed=seed)
    if together is not None:
        torch.testing.assert_close(together, found["offset"], rtol=0, atol=0, equal_nan=True)
    return found


def deform_expected(tensors, settings, grad) -> dict:
    """Returns the reference in float64, for the same regions and offsets, which determine the cells read."""
    input, rois, offset = (tensors[name] for name in ("input", "rois", "offset"))
    rois, offset = rois.double(), None if offset is None else offset.double()
    arguments = (input.double(), rois, offset, *settings.values())
    output = deform_reference.deform_psroi_pool(*arguments)
    needs = (True, offset is not None)
    grads = deform_reference.deform_psroi_pool_backward(grad.double(), *arguments, *needs)
    return {"output": output, "input": grads[0]} | ({"offset": grads[1]} if offset is not None else {})


def deform_case(dtype=torch.float64, **changes) -> tuple[dict, dict, Tensor]:
    tensors, settings = make_case(dtype=dtype, **changes)
    tensors["rois"] = with_bad_rois(tensors["rois"])
    if tensors["offset"] is not None:
        tensors["offset"] = tensors["offset"].repeat(3, 1, 1, 1)[: len(tensors["rois"])]
    shape = (len(tensors["rois"]), settings["output_dim"], *[settings["pooled_size"]] * 2)
    return tensors, settings, random(*shape, seed=5, dtype=dtype)


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
@pytest.mark.parametrize("lanes", [1, 8, 32])
def test_deform_psroi_pool(host, changes, lanes):
    tensors, settings, grad = deform_case(**changes)
    found = deform_on_host(host, tensors, settings, grad, lanes=lanes, blocks=2 if lanes == 8 else 0)
    assert_near(found, deform_expected(tensors, settings, grad), 1e-11)


# Channels of a class: wide accesses by 4 lanes, by a warp and repeated; single elements by 32 lanes.
LAST: dict[str, dict[str, Any]] = {
    "few": {"classes": 1, "output_dim": 16},
    "classes": {"classes": 2, "output_dim": 48, "pooled_size": 3, "part_size": 2},
    "more parts": {"classes": 1, "output_dim": 16, "pooled_size": 3, "part_size": 5},
    "many": {"classes": 1, "output_dim": 272, "pooled_size": 2, "part_size": 2, "rois": 5},
    "odd": {"classes": 1, "output_dim": 75, "pooled_size": 2, "part_size": 2},
    "no offsets": {"classes": 0, "output_dim": 24},
    "far": {"classes": 2, "output_dim": 32, "spread": 20.0},
}


def last_on_host(
    host, tensors, settings, grad, *, blocks=0, deterministic=False, seed=0, needs=("input", "offset")
) -> dict:
    """As :func:`deform_on_host`, with the kernels for channels-last memory."""
    input, rois, offset = (tensors[name] for name in ("input", "rois", "offset"))
    dtype, features = input.dtype, input.permute(0, 2, 3, 1).contiguous()
    offset = None if offset is None else offset.to(rois.dtype)
    sizes = sizes_of(input, rois, 1 if offset is None else offset.shape[1] // 2, **settings)
    scale, std = settings["spatial_scale"], settings["offset_std"]
    output, sums = unwritten(grad), torch.zeros_like(features, dtype=rois.dtype)
    regions = (features, rois, offset)
    host("deform_psroi_pool_last", dtype, sizes, blocks, scale, std, *regions, Out(output), seed=seed)
    found = {"output": output, "input": sums.permute(0, 3, 1, 2)}
    if offset is not None:
        found["offset"] = unwritten(offset)
    head = (dtype, sizes, blocks, deterministic, scale, std, grad)
    results = (
        InOut(sums) if "input" in needs else None,
        Out(found["offset"]) if "offset" in needs and offset is not None else None,
    )
    host("deform_psroi_pool_last_backward", *head, *regions, *results, seed=seed)
    return {name: value for name, value in found.items() if name in ("output", *needs)}


@pytest.mark.parametrize("changes", LAST.values(), ids=LAST)
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES, ids=str)
def test_channels_last_deform_psroi_pool(host, changes, dtype, tolerance):
    tensors, settings, grad = deform_case(dtype, group_size=1, **changes)
    found = last_on_host(host, tensors, settings, grad, blocks=2 if dtype == torch.float64 else 0)
    assert_near(found, deform_expected(tensors, settings, grad), tolerance)


@pytest.mark.parametrize("needs", ["input", "offset"])
def test_channels_last_gradients_alone(host, needs):
    tensors, settings, grad = deform_case(group_size=1, **LAST["classes"])
    expected = deform_expected(tensors, settings, grad)
    found = last_on_host(host, tensors, settings, grad, needs=(needs,))
    assert_near(found, {name: expected[name] for name in ("output", needs)}, 1e-11)


@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.stem)
def test_golden_vectors(host, path):
    tensors, settings, grad, expected = pooling_golden(path)
    assert_near(deform_on_host(host, tensors, settings, grad, lanes=32), expected, 2e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES, ids=str)
def test_deform_psroi_pool_in_every_dtype(host, dtype, tolerance):
    tensors, settings, grad = deform_case(dtype, classes=2, output_dim=6, group_size=2)
    found = deform_on_host(host, tensors, settings, grad)
    assert_near(found, deform_expected(tensors, settings, grad), tolerance)


def test_offsets_that_are_not_finite_read_nothing(host):
    tensors, settings, grad = deform_case(classes=1)
    for i, value in enumerate([float("nan"), float("inf"), float("-inf"), 1e30]):
        tensors["offset"][i] = value
    found = deform_on_host(host, tensors, settings, grad)
    assert not found["output"][:4].any() and not found["offset"][:4].any() and found["output"][4].any()
    assert_near(found, deform_expected(tensors, settings, grad), 1e-11)


def regions_of_all_sizes() -> Tensor:
    """Regions from a point to beyond a map of 30x33 cells, at its corners and inside: bins of 0 to 15 cells."""
    sides = torch.tensor([0, 16, 60, 111, 128, 150, 175, 200, 240, 300, 420, 700]).double()
    corners = torch.tensor([[8.0, 8], [-120, -75], [95, 131], [330, 300]]).double()
    rows = [[i % 2, x, y, x + w - 1, y + h - 1] for i, (x, y) in enumerate(corners) for w in sides for h in sides[::3]]
    return torch.tensor(rows, dtype=torch.float64)


# Samples 2 cells apart at cell centers (first region of 192 pixels): the window of 5 cells is full, and every other
# cell in it is not read.
WINDOWS = {
    "4 samples": {"classes": 4},
    "shared offsets": {"classes": 2, "part_size": 2},
    "no fractions": {"classes": 0, "pooled_size": 2, "part_size": 2, "samples_per_bin": 3},
    "many samples": {"classes": 4, "pooled_size": 3, "part_size": 3, "samples_per_bin": 11},
}


def window_case(dtype, changes) -> tuple[dict, dict, Tensor]:
    rois = torch.cat([torch.tensor([[0, 8.0, 8, 199, 199]]).double(), regions_of_all_sizes()])
    tensors, settings = make_case(rois=len(rois), size=(30, 33), dtype=dtype, **changes)
    tensors["rois"] = rois.to(tensors["rois"].dtype)
    shape = (len(rois), settings["output_dim"], *[settings["pooled_size"]] * 2)
    return tensors, settings, random(*shape, seed=5, dtype=dtype)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("changes", WINDOWS.values(), ids=WINDOWS)
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES[:2], ids=str)
def test_bins_of_all_sizes(host, changes, dtype, tolerance, deterministic):
    tensors, settings, grad = window_case(dtype, changes)
    found = deform_on_host(host, tensors, settings, grad, deterministic=deterministic)
    assert_near(found, deform_expected(tensors, settings, grad), tolerance)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("changes", WINDOWS.values(), ids=WINDOWS)
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES[:2], ids=str)
def test_cells_without_weight_are_not_read(host, changes, dtype, tolerance, value):
    tensors, settings, grad = window_case(dtype, changes)
    for region in range(0, len(tensors["rois"]), 7):
        alone = tensors | {"rois": tensors["rois"][region, None]}
        alone["offset"] = None if tensors["offset"] is None else tensors["offset"][region, None]
        arguments = (*alone.values(), *settings.values(), True, False)
        weights, _ = deform_reference.deform_psroi_pool_backward(torch.ones_like(grad[:1]), *arguments)
        expected = deform_expected(alone, settings, grad[region, None])
        alone["input"] = torch.where(weights == 0, value, tensors["input"])
        assert_near(deform_on_host(host, alone, settings, grad[region, None]), expected, tolerance)


LAST_WINDOWS = {
    "several channels": {"classes": 1, "output_dim": 16, "group_size": 1},
    "no fractions": WINDOWS["no fractions"] | {"output_dim": 16, "group_size": 1},
}


@pytest.mark.parametrize("value", [0.0, float("nan")])
@pytest.mark.parametrize("changes", LAST_WINDOWS.values(), ids=LAST_WINDOWS)
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES[:2], ids=str)
def test_channels_last_bins_of_all_sizes(host, changes, dtype, tolerance, value):
    """Also that cells which no bin reads do not matter."""
    tensors, settings, grad = window_case(dtype, changes)
    for some in (slice(0, 1), slice(1, 2), slice(0, len(grad), 2)):
        chosen = tensors | {k: v[some].contiguous() for k, v in tensors.items() if k != "input" and v is not None}
        arguments = (*chosen.values(), *settings.values(), True, False)
        weights, _ = deform_reference.deform_psroi_pool_backward(torch.ones_like(grad[some]), *arguments)
        expected = deform_expected(chosen, settings, grad[some])
        chosen["input"] = torch.where(weights == 0, value, tensors["input"])
        assert_near(last_on_host(host, chosen, settings, grad[some].contiguous()), expected, tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES, ids=str)
@pytest.mark.parametrize("changes", NARROW, ids=str)
def test_psroi_pool(host, changes, dtype, tolerance):
    tensors, settings = make_case(classes=0, dtype=dtype, **changes)
    input, rois, scale = tensors["input"], with_bad_rois(tensors["rois"]), settings["spatial_scale"]
    group, pooled = settings["group_size"], settings["pooled_size"]
    shape = (settings["output_dim"], group, pooled)
    output = reference.psroi_pool(input.double(), rois.double(), scale, *shape)
    grad = grad_like(output).to(dtype)
    backward = (rois.double(), len(input), *input.shape[2:], scale, group)
    expected = {"output": output, "input": reference.psroi_pool_backward(grad.double(), *backward)}
    found = {"output": unwritten(grad), "input": torch.zeros_like(input, dtype=rois.dtype)}
    sizes = sizes_of(input, rois, **settings)
    host("psroi_pool", dtype, sizes, 0, scale, input, rois, Out(found["output"]))
    host("psroi_pool_grad_input", dtype, sizes, 0, 0, scale, grad, rois, InOut(found["input"]))
    assert_near(found, expected, tolerance)


def align_on_host(host, input, rois, grad, ratio, aligned, *, deterministic=False) -> dict:
    """Returns the output and the gradient of the input."""
    dtype, scale = input.dtype, 1 / 16
    found = {"output": unwritten(grad), "input": torch.zeros_like(input, dtype=rois.dtype)}
    sizes = sizes_of(input, rois, pooled_size=grad.shape[-1])
    host("roi_align", dtype, sizes, 0, ratio, aligned, scale, input, rois, Out(found["output"]))
    head = (dtype, sizes, 0, deterministic, ratio, aligned, scale, grad, rois)
    host("roi_align_grad_input", *head, InOut(found["input"]))
    return found


def align_expected(input, rois, grad, ratio, aligned) -> dict:
    """Returns the reference in the dtype of the regions."""
    wide, scale = (input.to(rois.dtype), grad.to(rois.dtype)), 1 / 16
    output = align_reference.roi_align(wide[0], rois, scale, grad.shape[-1], ratio, aligned)
    backward = (rois, len(input), *input.shape[2:], scale, ratio, aligned)
    return {"output": output, "input": align_reference.roi_align_backward(wide[1], *backward)}


ALIGN = [(0, True), (0, False), (2, True), (3, False)]


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES, ids=str)
@pytest.mark.parametrize(("ratio", "aligned"), ALIGN)
def test_roi_align(host, ratio, aligned, dtype, tolerance):
    tensors, _ = make_case(classes=0, rois=20, dtype=dtype)
    input, rois = tensors["input"], with_bad_rois(tensors["rois"])
    grad = random(len(rois), input.shape[1], 3, 3, seed=5, dtype=dtype)
    found = align_on_host(host, input, rois, grad, ratio, aligned)
    assert_near(found, align_expected(input, rois.double(), grad, ratio, aligned), tolerance)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize(("ratio", "aligned"), [*ALIGN, (9, True)])
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES[:2], ids=str)
def test_aligned_bins_of_all_sizes(host, ratio, aligned, dtype, tolerance, deterministic):
    rois = regions_of_all_sizes()
    swapped = rois[::5, [0, 3, 4, 1, 2]]  # samples in decreasing order
    rois = torch.cat([rois, swapped]).to(dtype)
    input, grad = random(2, 3, 30, 33, dtype=dtype), random(len(rois), 3, 4, 4, seed=5, dtype=dtype)
    found = align_on_host(host, input, rois, grad, ratio, aligned, deterministic=deterministic)
    assert_near(found, align_expected(input, rois, grad, ratio, aligned), tolerance)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(("ratio", "aligned"), ALIGN)
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES[:2], ids=str)
def test_aligned_cells_without_weight_are_not_read(host, ratio, aligned, dtype, tolerance, value):
    rois, input = regions_of_all_sizes().to(dtype), random(2, 3, 30, 33, dtype=dtype)
    for region in rois[::7, None]:
        grad = random(1, 3, 4, 4, seed=5, dtype=dtype)
        weights = align_expected(input, region, torch.ones_like(grad), ratio, aligned)["input"]
        expected = align_expected(input, region, grad, ratio, aligned)
        values = torch.where(weights == 0, value, input)
        assert_near(align_on_host(host, values, region, grad, ratio, aligned), expected, tolerance)


@pytest.mark.parametrize("dtype", [dtype for dtype, _ in DTYPES], ids=str)
@pytest.mark.parametrize("pooled_size", [1, 3, 7])
def test_roi_pool(host, pooled_size, dtype):
    tensors, _ = make_case(classes=0, rois=20, dtype=dtype)
    input, rois = tensors["input"].relu(), with_bad_rois(tensors["rois"])
    input[0, 0, 3:6, 4] = float("nan")
    output, argmax = reference.roi_pool(input, rois, 1 / 16, pooled_size)
    grad = grad_like(output)
    grad_input = reference.roi_pool_backward(grad.double(), rois.double(), argmax, len(input), *input.shape[2:])
    found, cells = unwritten(output), unwritten(argmax)
    sums = torch.zeros_like(input, dtype=rois.dtype)
    sizes = sizes_of(input, rois, pooled_size=pooled_size)
    host("roi_pool", dtype, sizes, 0, 1 / 16, input, rois, Out(found), Out(cells))
    host("roi_pool_grad_input", dtype, sizes, 0, 0, grad, rois, argmax, InOut(sums))
    torch.testing.assert_close(found, output, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(cells, argmax)
    assert_near({"input": sums}, {"input": grad_input}, 1e-12 if dtype == torch.float64 else 1e-6)


def test_no_regions_and_no_cells(host):
    tensors = {
        "input": torch.zeros(1, 16, 5, 6),
        "rois": torch.zeros(0, 5),
        "offset": torch.zeros(0, 4, 4, 4),
    }
    found = deform_on_host(host, tensors, options(), torch.ones(0, 4, 4, 4))
    assert not found["input"].any()
    for size in ((0, 6), (5, 0)):  # the operator does not launch deform_psroi_pool for these
        input, rois = torch.zeros(1, 16, *size), torch.tensor([[0.0, 0, 0, 40, 40], [0, -9, -9, -1, -1]])
        output = torch.full((2, 4, 4, 4), torch.nan)
        host("psroi_pool", torch.float32, sizes_of(input, rois, **options()), 0, 1 / 16, input, rois, Out(output))
        assert not output.any()
        output, cells = torch.full((2, 16, 4, 4), torch.nan), torch.zeros(2, 16, 4, 4, dtype=torch.int32)
        sizes = sizes_of(input, rois, pooled_size=4)
        host("roi_pool", torch.float32, sizes, 0, 1 / 16, input, rois, Out(output), Out(cells))
        assert not output.any() and (cells == -1).all()


def sums_of(host, name: str, dtype: torch.dtype, **how) -> tuple[Tensor, Tensor]:
    """Returns the input's gradient for overlapping regions, and the reference in float64."""
    tensors, settings = make_case(classes=0, rois=20, size=(6, 7), dtype=dtype)
    input, rois, scale = tensors["input"], tensors["rois"], settings["spatial_scale"]
    deterministic, seed = how["deterministic"], how["seed"]
    group, pooled = settings["group_size"], settings["pooled_size"]
    sums = torch.zeros_like(input, dtype=rois.dtype)
    sizes = sizes_of(input, rois, **settings)
    wide, size = rois.double(), (len(input), input.shape[2], input.shape[3])
    if name == "roi_pool":
        _, argmax = reference.roi_pool(input, rois, scale, pooled)
        grad = random(*argmax.shape, seed=5, dtype=dtype)
        sizes = sizes_of(input, rois, pooled_size=pooled)
        host("roi_pool_grad_input", dtype, sizes, 0, deterministic, grad, rois, argmax, InOut(sums), seed=seed)
        return sums, reference.roi_pool_backward(grad.double(), wide, argmax, *size)
    if name == "roi_align":
        grad = random(len(rois), input.shape[1], pooled, pooled, seed=5, dtype=dtype)
        sizes = sizes_of(input, rois, pooled_size=pooled)
        host("roi_align_grad_input", dtype, sizes, 0, deterministic, 0, 1, scale, grad, rois, InOut(sums), seed=seed)
        return sums, align_reference.roi_align_backward(grad.double(), wide, *size, scale, 0, True)
    grad = random(len(rois), settings["output_dim"], pooled, pooled, seed=5, dtype=dtype)
    if name == "psroi_pool":
        head = (dtype, sizes, 0, deterministic, scale, grad, rois)
        host("psroi_pool_grad_input", *head, InOut(sums), seed=seed)
        return sums, reference.psroi_pool_backward(grad.double(), wide, *size, scale, group)
    if name == "deform_psroi_pool_last":
        settings |= {"output_dim": input.shape[1], "group_size": 1}
        grad = random(len(rois), input.shape[1], pooled, pooled, seed=5, dtype=dtype)
        sums = last_on_host(host, tensors, settings, grad, **how)["input"]
    else:
        sums = deform_on_host(host, tensors, settings, grad, **how)["input"]
    return sums, deform_expected(tensors, settings, grad)["input"]


@pytest.mark.parametrize("name", ["deform_psroi_pool", "deform_psroi_pool_last", "psroi_pool", "roi_align", "roi_pool"])
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES, ids=str)
def test_deterministic_sums(host, name, dtype, tolerance):
    """Deterministic sums have the same bits for any order of blocks and threads; floating point sums do not."""
    exact = [sums_of(host, name, dtype, deterministic=True, seed=seed) for seed in range(4)]
    for sums, expected in exact:
        assert torch.equal(sums, exact[0][0])
        assert_near({"input": sums}, {"input": expected}, tolerance)
    others = [sums_of(host, name, dtype, deterministic=False, seed=seed)[0] for seed in range(4)]
    # Sums of a few bfloat16 numbers are exact in any order.
    assert dtype in (torch.float16, torch.bfloat16) or not all(torch.equal(sums, others[0]) for sums in others)
