"""Reading of offsets: points by hand and by the operator, in wrapped, folded and mixed-precision networks."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from dcn_det.config import load_config
from dcn_det.models.build import build_detector
from dcn_det.models.folded import Folding
from dcn_det.ops import DeformConv2d
from dcn_det.structures import Batch, ImageInfo
from dcn_det.visualize.offsets import BinOffsets, Offsets, deformable_layers, reading_bin_offsets, reading_offsets

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def moved(layer: DeformConv2d, std: float = 1.0) -> DeformConv2d:
    """Gives a layer random offsets."""
    nn.init.normal_(layer.offset.bias, std=std)  # type: ignore[arg-type]
    nn.init.normal_(layer.offset.weight, std=0.05)
    return layer


def read(model: nn.Module, *inputs: object) -> list[Offsets]:
    readings: list[Offsets] = []
    with reading_offsets(model, readings.append):
        model(*inputs)
    return readings


def batch(count: int = 2, side: int = 64) -> Batch:
    images = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8)
    return Batch(images, [ImageInfo(i, "", side, side, side, side) for i in range(count)])


def test_points_by_hand() -> None:
    layer = DeformConv2d(1, 1, 3, stride=2, padding=1, dilation=(1, 3))
    with torch.no_grad():
        assert layer.offset.bias is not None
        layer.offset.bias[2 * 5], layer.offset.bias[2 * 5 + 1] = 0.5, -0.25  # row 1, column 2
    (reading,) = read(layer, torch.zeros(1, 1, 9, 15))
    points = reading.points()
    assert points.shape == (1, 1, 3, 3, 2, 5, 6) and reading.input_size == (9, 15)
    # The filter of row 2, column 4 starts at (2 * 2 - 1, 4 * 2 - 1); its taps are 1 apart along y and 3 along x.
    assert points[0, 0, :, :, 0, 2, 4].tolist() == [[3, 3, 3], [4, 4, 4.5], [5, 5, 5]]
    assert points[0, 0, :, :, 1, 2, 4].tolist() == [[7, 10, 13], [7, 10, 12.75], [7, 10, 13]]


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_points_are_where_the_operator_samples(groups: int, modulated: bool) -> None:
    """Samples of a map that holds its own coordinates are the coordinates of the points."""
    torch.manual_seed(0)
    kernel, side = (3, 2), 13
    options = {"stride": (1, 2), "padding": 1, "dilation": (2, 1), "offset_groups": groups, "modulated": modulated}
    layer = moved(DeformConv2d(2 * groups, 2 * groups * 6, kernel, bias=False, **options))  # type: ignore[arg-type]
    with torch.no_grad():
        layer.weight.zero_()
        for group in range(groups):
            for tap in range(6):
                for axis in (0, 1):
                    layer.weight[(group * 6 + tap) * 2 + axis, 2 * group + axis, tap // 2, tap % 2] = 1
    coordinates = torch.stack(torch.meshgrid(*[torch.arange(float(side))] * 2, indexing="ij"))[None]
    input = coordinates.repeat(2, groups, 1, 1)
    (reading,) = read(layer, input)
    points = reading.points()
    sampled = layer(input).detach().reshape(points.shape)
    if modulated:
        assert reading.mask is not None
        sampled = sampled / reading.mask.reshape(*points.shape[:4], 1, *points.shape[5:])
    inside = ((points > 0) & (points < side - 1)).all(dim=4, keepdim=True).expand_as(points)
    assert inside.float().mean() > 0.4
    torch.testing.assert_close(sampled[inside], points[inside], atol=2e-5, rtol=1e-5)


SMALL_PYRAMID = (
    "model.backbone={kind: resnet18, width: 8, stem_width: 8, weights: none, norm: gn, frozen_stages: 0}",
    "model.backbone.deform={blocks: [res3b, res4a, res5b], offset_groups: 1}",
    "model.rpn={channels: 16, pre_nms: 50, post_nms: 5}",
    "model.head.hidden=16",
)


@pytest.mark.parametrize(
    ("config", "overrides", "layers"),
    [
        ("sample/class_aware_rpn_dcn", ("model.backbone.deform.kind=v1",), 2),
        ("sample/faster_rcnn_dcn", ("model.backbone.deform={kind: v2, offset_groups: 2}",), 2),
        ("coco/faster_rcnn_r101_fpn_dcn", SMALL_PYRAMID, 3),
    ],
)
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_detectors(config: str, overrides: tuple[str, ...], layers: int, precision: torch.dtype) -> None:
    torch.manual_seed(0)
    model = build_detector(load_config(CONFIGS / f"{config}.yaml", *overrides), 10).eval()
    for layer in deformable_layers(model).values():
        moved(layer)
    shown = batch(side=32)
    with torch.autocast("cpu", dtype=precision, enabled=precision != torch.float32):
        before = model(shown)
        readings = read(model, shown)
        after = model(shown)
    assert [each.name for each in readings] == list(deformable_layers(model))
    assert len(readings) == layers
    for each in readings:
        assert model.get_submodule(each.name) is each.layer
        assert each.offset.dtype == torch.float32 and not each.offset.requires_grad
        assert each.offset.shape[:2] == (2, 18 * each.layer.offset_groups)
        assert (each.mask is not None) == each.layer.modulated
    for one, other in zip(before, after):
        assert torch.equal(one.boxes, other.boxes)


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_names_and_gradients_are_those_of_the_detector_that_is_wrapped() -> None:
    torch.manual_seed(0)
    model = build_detector(load_config(CONFIGS / "sample/class_aware_rpn_dcn.yaml"), 10).eval()
    alone = read(model, batch())
    wrapped = nn.parallel.DistributedDataParallel(nn.Sequential(model), find_unused_parameters=True)
    together = read(wrapped, batch())
    assert [each.name for each in alone] == [each.name for each in together] != []

    layer = moved(DeformConv2d(4, 4, 3, padding=1))
    network = nn.parallel.DistributedDataParallel(layer)
    input = torch.randn(1, 4, 6, 6)

    def gradients() -> list[Tensor]:
        network.zero_grad()
        network(input).square().sum().backward()
        return [each.grad.clone() for each in layer.parameters() if each.grad is not None]

    plain = gradients()
    readings: list[Offsets] = []
    with reading_offsets(network, readings.append):
        hooked = gradients()
    assert len(readings) == 1 and len(plain) == len(hooked) == 4
    assert all(map(torch.equal, plain, hooked))


def test_a_layer_that_is_called_twice_is_read_twice() -> None:
    shared = DeformConv2d(2, 2, 3, padding=1)
    readings = read(nn.Sequential(shared, nn.MaxPool2d(2), shared), torch.zeros(1, 2, 8, 8))
    assert [(each.name, each.offset.shape[-1]) for each in readings] == [("0", 8), ("0", 4)]


@pytest.mark.parametrize(
    ("config", "overrides", "channels"),
    [
        ("sample/rfcn_dcn", (), (2 * 11, 2)),
        ("sample/faster_rcnn_dcn", (), (2,)),
        ("coco/faster_rcnn_r101_fpn_dcn", (*SMALL_PYRAMID, "model.head.pooling=modulated"), (2,) * 4),
        ("sample/faster_rcnn", (), ()),
    ],
)
def test_offsets_of_bins(config: str, overrides: tuple[str, ...], channels: tuple[int, ...]) -> None:
    """R-FCN moves scores and deltas, Faster R-CNN all channels of each level; masks are no offsets."""
    torch.manual_seed(0)
    model = build_detector(load_config(CONFIGS / f"{config}.yaml", *overrides), 10).eval()
    readings: list[BinOffsets] = []
    with reading_bin_offsets(model, readings.append):
        model(batch(side=64))
    assert tuple(each.offset.shape[1] for each in readings) == channels
    for each in readings:
        assert each.name == "head" and each.head is model.head
        assert each.offset.shape[2:] == (each.head.pooled_size, each.head.pooled_size)
    assert not any(module._forward_hooks for module in model.modules())


def test_hooks_end_with_the_block() -> None:
    layer = DeformConv2d(2, 2, 3, padding=1)
    readings: list[Offsets] = []
    with pytest.raises(ZeroDivisionError), reading_offsets(layer, readings.append):
        raise ZeroDivisionError
    layer(torch.zeros(1, 2, 8, 8))
    assert readings == [] and not any(module._forward_hooks for module in layer.modules())


def test_a_folded_network_is_bypassed_while_it_is_read() -> None:
    model = build_detector(load_config(CONFIGS / "sample/class_aware_rpn_dcn.yaml", "model.backbone.norm=bn"), 10)
    folding = Folding(model.eval(), torch.float32)
    assert folding.current() is not model
    with reading_offsets(model, lambda each: None):
        assert folding.current() is model
    assert folding.current() is not model
