"""Requirements for any input, on every tier: clear errors, sizes beyond 32 bits, extreme numbers, mixed batches."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

import dcn_det.ops
from dcn_det.ops import batched_nms, deform_conv2d, library, nms
from tests.ops.pooling_tiers import TIERS, use_tier
from tests.ops.property_cases import Random, repeatable, seeds

LARGEST = torch.finfo(torch.float32).max
WILD = [float("nan"), float("inf"), float("-inf"), 1e30, -1e30, LARGEST, -LARGEST]
WILD += [2.0**31, -(2.0**31), 2.0**63, 1e9, -0.5, 0.5, 1e-40]

PSROI = {"spatial_scale": 1 / 16, "output_dim": 2, "group_size": 2, "pooled_size": 3}
DEFORM = PSROI | {"part_size": 3, "samples_per_bin": 2, "offset_std": 0.1}
POOLS = {
    "deform_psroi_pool": (8, DEFORM),
    "psroi_pool": (8, PSROI),
    "roi_pool": (8, {"spatial_scale": 1 / 16, "pooled_size": 3}),
}


@pytest.fixture(params=TIERS)
def tier(request) -> str:
    return request.param


def good_arguments(name: str) -> dict:
    """Returns valid arguments by name, tensors and options."""
    if name == "deform_conv2d":
        tensors = {
            "input": torch.zeros(2, 4, 6, 7),
            "offset": torch.zeros(2, 18, 4, 5),
            "weight": torch.zeros(6, 4, 3, 3),
        }
        return tensors | {"bias": torch.zeros(6), "mask": torch.zeros(2, 9, 4, 5)}
    if name in POOLS:
        tensors = {"input": torch.zeros(2, 8, 6, 7), "rois": torch.zeros(3, 5)}
        offset = {"offset": torch.zeros(3, 4, 3, 3)} if name == "deform_psroi_pool" else {}
        return tensors | offset | POOLS[name][1]
    tensors = {"boxes": torch.zeros(5, 4), "scores": torch.zeros(5)}
    return tensors | ({"labels": torch.arange(5)} if name == "batched_nms" else {}) | {"iou_threshold": 0.5}


ALL = ["deform_conv2d", *POOLS, "nms", "batched_nms"]
TENSORS = [
    (name, key) for name in ALL for key, value in good_arguments(name).items() if isinstance(value, torch.Tensor)
]
NUMBERS = [
    (name, key) for name in ALL for key, value in good_arguments(name).items() if isinstance(value, (int, float))
]


def assert_refused(name: str, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: {message}"):
        getattr(dcn_det.ops, name)(**good_arguments(name) | changes)


@pytest.mark.parametrize("name", ALL)
def test_good_arguments_pass(name):
    getattr(dcn_det.ops, name)(**good_arguments(name))


@pytest.mark.parametrize(("name", "key"), TENSORS)
def test_what_is_no_dense_tensor(name, key, tier, monkeypatch):
    use_tier("nms" if name == "batched_nms" else name, tier, monkeypatch)
    value = good_arguments(name)[key]
    assert_refused(name, {key: value.tolist()}, f"{key} is a list; expected a tensor")
    assert_refused(name, {key: value.numpy()}, f"{key} is a ndarray; expected a tensor")
    assert_refused(name, {key: value.to_sparse()}, f"{key} is torch.sparse_coo; expected torch.strided")
    if key not in ("bias", "mask", "offset"):
        assert_refused(name, {key: None}, f"{key} is None; expected a tensor")
    for dtype in (torch.complex64, torch.bool):
        assert_refused(name, {key: value.to(dtype)}, f"{key} is {dtype}; expected ")


@pytest.mark.parametrize(("name", "key"), TENSORS)
def test_another_device(name, key, tier, monkeypatch):
    use_tier("nms" if name == "batched_nms" else name, tier, monkeypatch)
    first = next(iter(good_arguments(name)))
    changed, expected = (key, "cpu") if key != first else (TENSORS[TENSORS.index((name, key)) + 1][1], "cpu")
    assert_refused(
        name, {changed: good_arguments(name)[changed].to("meta")}, f"{changed} is on meta; expected {expected}"
    )


# Direct calls of operators; tuples stand for tensors of that shape.
DIRECT = {
    "deform_psroi_pool": [(2, 8, 6, 7), (3, 5), (3, 4, 3, 3), *DEFORM.values()],
    "deform_psroi_pool_backward": [(3, 2, 3, 3), (2, 8, 6, 7), (3, 5), (3, 4, 3, 3), *DEFORM.values(), True, True],
    "psroi_pool": [(2, 8, 6, 7), (3, 5), *PSROI.values()],
    "psroi_pool_backward": [(3, 2, 3, 3), (3, 5), 2, 6, 7, 1 / 16, 2],
    "roi_align": [(2, 8, 6, 7), (3, 5), 1 / 16, 3, 2, True],
    "roi_align_backward": [(3, 8, 3, 3), (3, 5), 2, 6, 7, 1 / 16, 2, True],
    "roi_pool": [(2, 8, 6, 7), (3, 5), 1 / 16, 3],
    "roi_pool_backward": [(3, 8, 3, 3), (3, 5), (3, 8, 3, 3), 2, 6, 7],
    "nms": [(5, 4), (5,), (5,), 0.5, None],
}
MOVED = [(name, i) for name, values in DIRECT.items() for i, value in enumerate(values) if isinstance(value, tuple)]


def direct_call(name: str, devices: dict[int, str], device: str, keys: torch._C.DispatchKeySet | None = None) -> object:
    """Calls an operator below its public function, with tensors on a device, except those at some positions."""
    operator = getattr(torch.ops.dcn_det, name).default
    arguments = []
    for i, value in enumerate(DIRECT[name]):
        if isinstance(value, tuple):
            whole = {"argmax": torch.int32, "labels": torch.int64}
            dtype = whole.get(operator._schema.arguments[i].name, torch.float32)
            value = torch.zeros(value, dtype=dtype, device=devices.get(i, device))
        arguments.append(value)
    return operator(*arguments) if keys is None else operator.redispatch(keys, *arguments)


@pytest.mark.parametrize(("name", "moved"), MOVED)
def test_kernels_refuse_tensors_on_two_devices(name, moved):
    if library.tier(name, "cpu") != "cpu":
        pytest.skip("no compiled kernel")
    cpu = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
    direct_call(name, {}, "cpu", cpu)
    with pytest.raises(RuntimeError, match=r"is on (cpu|another device); expected (cpu|another device), like "):
        direct_call(name, {moved: "meta"}, "cpu", cpu)


@pytest.mark.parametrize(("name", "moved"), MOVED)
def test_fake_kernels_refuse_tensors_on_two_devices(name, moved):
    with FakeTensorMode(shape_env=ShapeEnv()):
        direct_call(name, {}, "cuda")
        with pytest.raises(ValueError, match=r"is on (cpu|cuda:0); expected (cpu|cuda:0), like "):
            direct_call(name, {moved: "cpu"}, "cuda")


@pytest.mark.parametrize(("name", "key"), TENSORS)
@pytest.mark.parametrize("change", ["fewer dimensions", "more dimensions"])
def test_another_number_of_dimensions(name, key, change, tier, monkeypatch):
    use_tier("nms" if name == "batched_nms" else name, tier, monkeypatch)
    value = good_arguments(name)[key]
    value = value[0] if change == "fewer dimensions" else value[None]
    assert_refused(name, {key: value}, rf"{key} is of shape {re.escape(str(tuple(value.shape)))}; expected ")


@pytest.mark.parametrize(("name", "key"), NUMBERS)
@pytest.mark.parametrize("value", [None, "1", -1, float("nan"), [1, 2]])
def test_numbers_that_are_none(name, key, value):
    if key == "offset_std" and value == -1:
        pytest.skip("may be negative")
    assert_refused(name, {key: value}, f"{key} is {re.escape(repr(value))}; expected ")


@pytest.mark.parametrize("name", ALL)
def test_meta_tensors(name):
    """Meta tensors give the right shape without values, or a clear error."""
    arguments = good_arguments(name)
    expected = getattr(dcn_det.ops, name)(**arguments)
    arguments = {
        key: value.to("meta") if isinstance(value, torch.Tensor) else value for key, value in arguments.items()
    }
    if name in ("nms", "batched_nms"):
        with pytest.raises(ValueError, match=f"^{name}: boxes is on meta; expected a device that holds values"):
            getattr(dcn_det.ops, name)(**arguments)
        return
    output = getattr(dcn_det.ops, name)(**arguments)
    assert output.is_meta and output.shape == expected.shape and output.dtype == expected.dtype


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("deform_conv2d", {"offset": torch.zeros(2, 17, 4, 5)}),
        ("deform_conv2d", {"offset": torch.zeros(2, 18, 4, 4)}),
        ("deform_conv2d", {"weight": torch.zeros(6, 4, 3, 3).double()}),
        ("deform_conv2d", {"mask": torch.zeros(2, 8, 4, 5)}),
        ("deform_conv2d", {"bias": torch.zeros(5)}),
        ("deform_psroi_pool", {"input": torch.zeros(2, 7, 6, 7)}),
        ("deform_psroi_pool", {"rois": torch.zeros(3, 5).double()}),
        ("deform_psroi_pool", {"offset": torch.zeros(3, 3, 3, 3)}),
        ("deform_psroi_pool", {"samples_per_bin": 0}),
        ("psroi_pool", {"rois": torch.zeros(3, 4)}),
        ("psroi_pool", {"pooled_size": 2**15}),
        ("roi_pool", {"rois": torch.zeros(3, 5).bfloat16()}),
        ("nms", {"scores": torch.zeros(4)}),
        ("nms", {"iou_threshold": 2.0}),
    ],
)
def test_fake_kernels_refuse_what_the_compiled_ones_refuse(name, changes):
    arguments = good_arguments(name) | changes
    if name == "deform_conv2d":
        arguments |= {"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "border": "zeros"}
    arguments |= {"labels": None, "max_keep": None} if name == "nms" else {}
    operator = getattr(torch.ops.dcn_det, name)
    with pytest.raises(RuntimeError):
        operator(**arguments)
    with torch._subclasses.FakeTensorMode() as mode, pytest.raises(ValueError, match=f"^{name}: .* is .*; expected "):
        fakes = {k: mode.from_tensor(v) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
        operator(**fakes)


def huge(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Returns a tensor of any size that occupies four bytes."""
    return torch.zeros((), dtype=dtype).expand(*shape)


@pytest.mark.parametrize("name", POOLS)
def test_maps_of_more_cells_than_an_int_counts(name, tier, monkeypatch):
    device = use_tier(name, tier, monkeypatch)
    arguments = good_arguments(name) | {"input": huge(1, 8, 2**16, 2**15)}
    arguments = {key: value.to(device) if key in ("rois", "offset") else value for key, value in arguments.items()}
    with pytest.raises(
        ValueError, match=rf"^{name}: input is of shape \(1, 8, 65536, 32768\); expected at most 2147483647"
    ):
        getattr(dcn_det.ops, name)(**arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stride": 2**31}, "stride is 2147483648; expected at most 2147483647"),
        ({"padding": (0, 2**40)}, r"padding is \(0, 1099511627776\); expected at most 2147483647"),
        ({"dilation": 2**31}, "dilation is 2147483648; expected at most 2147483647"),
        ({"padding": 2**30}, "input is of height 2147483654 .*; expected at most 2147483647"),
        ({"input": huge(2, 4, 6, 2**31)}, "input is of width 2147483648 .*; expected at most"),
    ],
)
def test_convolution_of_more_cells_than_an_int_counts(changes, message, tier, monkeypatch):
    use_tier("deform_conv2d", tier, monkeypatch)
    assert_refused("deform_conv2d", changes, message)


def test_far_steps_of_a_convolution(tier, monkeypatch):
    """Products of strides and dilations with positions exceed 2^31; few positions remain."""
    device = use_tier("deform_conv2d", tier, monkeypatch)
    input = torch.arange(12.0).reshape(1, 1, 3, 4).to(device)
    weight = torch.ones(1, 1, 2, 2).to(device)
    offset = torch.zeros(1, 8, 1, 1).to(device)
    far = 2**30
    output = deform_conv2d(input, offset, weight, padding=2**29, dilation=far, stride=2**31 - 1)
    # Taps are 2^29 before and after the map, none within.
    assert output.tolist() == [[[[0.0]]]]
    offset[0, 0::2], offset[0, 1::2] = 2.0**29, 2.0**29
    output = deform_conv2d(input, offset, weight, padding=2**29, dilation=far, stride=2**31 - 1)
    assert output.tolist() == [[[[0.0]]]]  # the first tap reads input[0, 0], as float32 holds 2^29 exactly


def wild(random: Random, tensor: torch.Tensor, part: float) -> torch.Tensor:
    """Returns the tensor with some values replaced."""
    values = torch.tensor(WILD, dtype=torch.float64)
    chosen = values[torch.randint(len(WILD), tensor.shape, generator=random.generator)]
    replaced = torch.rand(tensor.shape, generator=random.generator) < part
    return torch.where(replaced, chosen, tensor)


def assert_same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for a, b in zip(found, expected):
        assert not b.isnan().any()
        torch.testing.assert_close(a.cpu(), b, rtol=1e-4, atol=1e-4)


def gradients_of(function, leaves: list[torch.Tensor]) -> list[torch.Tensor]:
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    output = function(*leaves)
    return [output.detach(), *torch.autograd.grad(output.sum(), leaves)]


def on_both(name: str, tier: str, monkeypatch: pytest.MonkeyPatch, function, leaves: list[torch.Tensor]) -> tuple:
    """Returns output and gradients on a tier and on the plain tier."""
    with monkeypatch.context() as patch:
        device = use_tier(name, tier, patch)
        found = gradients_of(lambda *leaves: function(device, *leaves), [leaf.to(device) for leaf in leaves])
    with monkeypatch.context() as patch:
        use_tier(name, "plain", patch)
        return found, gradients_of(lambda *leaves: function(torch.device("cpu"), *leaves), leaves)


COMPILED = [tier for tier in TIERS if tier != "plain"]


@pytest.mark.parametrize("tier", COMPILED)
def test_wild_offsets_of_a_convolution(tier, monkeypatch):
    use_tier("deform_conv2d", tier, monkeypatch)

    @repeatable(300)
    @given(seeds(), st.sampled_from(["zeros", "dcn_v1"]), st.sampled_from([0.05, 0.5, 1.0]))
    def check(random, border, part) -> None:
        input, weight = random.normal(2, 4, 6, 7).float(), random.normal(3, 4, 3, 3).float()
        offset = random.normal(2, 36, 4, 5).floor() + (2 * random.integers(0, 7, 2, 36, 4, 5) + 1) / 16
        offset = wild(random, offset, part).float()
        mask = random.normal(2, 18, 4, 5).float()
        found, expected = on_both(
            "deform_conv2d",
            tier,
            monkeypatch,
            lambda device, input, offset, weight, mask: deform_conv2d(input, offset, weight, mask=mask, border=border),
            [input, offset, weight, mask],
        )
        assert_same(found, expected)
        assert not found[2][~(offset.abs() < 1e9)].any()

    check()


@pytest.mark.parametrize("tier", COMPILED)
@pytest.mark.parametrize("name", POOLS)
def test_wild_regions(name, tier, monkeypatch):
    use_tier(name, tier, monkeypatch)
    _, options = POOLS[name]

    @repeatable(300)
    @given(seeds(), st.sampled_from([1.0, 1 / 16, 1e-30, 1e30]), st.sampled_from([0.1, 0.5, 1.0]))
    def check(random, scale, part) -> None:
        input = random.distinct(2, 8, 6, 7).float()
        start = random.integers(-20, 100, 5, 2)
        corners = wild(random, torch.cat([start, start + random.integers(0, 80, 5, 2)], 1), part)
        rois = torch.cat([random.integers(0, 1, 5, 1), corners], 1).float()
        leaves = [input]
        if name == "deform_psroi_pool":
            leaves.append(wild(random, random.normal(5, 4, 3, 3), part).float())
        settings = options | {"spatial_scale": scale}
        found, expected = on_both(
            name,
            tier,
            monkeypatch,
            lambda device, input, *offset: getattr(dcn_det.ops, name)(input, rois.to(device), *offset, **settings),
            leaves,
        )
        assert_same(found, expected)
        assert not found[0][~rois.isfinite().all(1).to(found[0].device)].any()

    check()


def test_wild_boxes(tier, monkeypatch):
    """Suppression is defined for extreme boxes as well: non-finite boxes overlap nothing."""
    device = use_tier("nms", tier, monkeypatch)

    @repeatable(300)
    @given(seeds(), st.sampled_from([0.1, 0.5, 1.0]), st.sampled_from([0.0, 0.5, 1.0]))
    def check(random, part, threshold) -> None:
        boxes = wild(random, random.integers(0, 30, 80, 4), part).float()
        scores = wild(random, random.normal(80), 0.2).float()
        labels = random.integers(0, 2, 80).long()
        kept = batched_nms(boxes.to(device), scores.to(device), labels.to(device), threshold).cpu()
        assert not scores[kept].isnan().any()
        assert torch.equal(scores[kept], scores[kept].sort(descending=True).values)
        assert len(set(kept.tolist())) == len(kept)
        alone = (~boxes.isfinite().all(1) & ~scores.isnan()).nonzero()[:, 0]
        assert set(alone.tolist()) <= set(kept.tolist())
        some = nms(boxes.to(device), scores.to(device), threshold, 3).cpu()
        assert len(some) == min(3, len(nms(boxes.to(device), scores.to(device), threshold)))

    check()


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("batch", [1, 31, 32, 33, 65])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_images_of_a_batch_leave_each_other_alone(name, batch, layout, tier, monkeypatch):
    device = use_tier(name, tier, monkeypatch)
    channels, options = POOLS[name]
    random = Random(0)
    input = random.normal(batch, channels, 5, 6).float().to(device, memory_format=layout)
    rois = torch.tensor([[0.0, 5, 7, 60, 50], [0, 30, 10, 70, 90]]).repeat(batch, 1)
    rois[:, 0] = torch.arange(2 * batch) // 2
    offset = random.normal(2 * batch, 4, 3, 3).float().to(device)
    rois = rois[torch.randperm(2 * batch, generator=random.generator)].to(device)
    function = getattr(dcn_det.ops, name)

    def pooled(input: torch.Tensor, rois: torch.Tensor, offset: torch.Tensor) -> list[torch.Tensor]:
        offsets = [offset] if name == "deform_psroi_pool" else []
        return gradients_of(lambda input, *offsets: function(input, rois, *offsets, **options), [input, *offsets])

    whole = pooled(input, rois, offset)
    for image in range(batch):
        own = rois[:, 0] == image
        moved = rois[own].clone()
        moved[:, 0] = 0
        alone = pooled(input[image : image + 1], moved, offset[own])
        assert torch.equal(whole[0][own], alone[0])
        torch.testing.assert_close(whole[1][image : image + 1], alone[1], rtol=1e-6, atol=1e-6)
        if len(alone) == 3:
            assert torch.equal(whole[2][own], alone[2])


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("index", [-1, 2, 0.5, float("nan"), float("inf"), -1e30])
def test_image_index(name, index, tier, monkeypatch):
    """An index outside the batch is an error on the CPU; a fractional index is truncated."""
    device = use_tier(name, tier, monkeypatch)
    arguments = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in good_arguments(name).items()}
    arguments["rois"][1, 0] = index
    if index != 0.5 and device.type == "cpu":
        message = rf"rois is of image {re.escape(f'{index:g}')} in row 1; expected one of the input's 2 images"
        with pytest.raises(ValueError, match=f"^{name}: {message}"):
            getattr(dcn_det.ops, name)(**arguments)
    else:
        assert not getattr(dcn_det.ops, name)(**arguments).any()
