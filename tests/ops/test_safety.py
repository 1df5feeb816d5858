"""Requirements for any input, on every tier: clear errors, sizes beyond 32 bits, extreme numbers, mixed batches."""

import re

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

import dcn_det.ops
from dcn_det.ops import deform_conv2d, library
from tests.ops.pooling_tiers import use_tier
from tests.ops.property_cases import Random, gradients_of

PSROI = {"spatial_scale": 1 / 16, "output_dim": 2, "group_size": 2, "pooled_size": 3}
DEFORM = PSROI | {"part_size": 3, "samples_per_bin": 2, "offset_std": 0.1}
POOLS = {
    "deform_psroi_pool": (8, DEFORM),
    "psroi_pool": (8, PSROI),
    "roi_pool": (8, {"spatial_scale": 1 / 16, "pooled_size": 3}),
}


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
