from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcn_det.config import from_plain
from dcn_det.errors import UserError
from dcn_det.models.backbones import aligned_inception_resnet as air
from dcn_det.models.backbones.aligned_inception_resnet import AlignedInceptionResNet
from dcn_det.models.backbones.convolution import DeformableBlocks
from dcn_det.models.build import build_detector
from dcn_det.ops import DeformConv2d
from dcn_det.structures import Batch, ImageInfo, Target
from dcn_det.weights.backbone import load_backbone_weights
from dcn_det.weights.files import load_into
from tests.models.helpers import scramble

SMALL: dict[str, Any] = {"width": 8, "stem_width": 8}
SETTINGS = {**SMALL, "kind": air.KIND, "norm": "bn", "frozen_stages": 0, "weights": "none"}


def convolutions(network: nn.Module) -> dict[str, nn.Conv2d | DeformConv2d]:
    return {name: each for name, each in network.named_modules() if isinstance(each, nn.Conv2d | DeformConv2d)}


def millions(values: list[Tensor]) -> float:
    return round(sum(value.numel() for value in values) / 1e6, 2)


def test_parameters_as_published() -> None:
    # The paper says 64.3 M; with the affine of batch norm it is 64.38 M, without 64.25 M.
    with torch.device("meta"):
        network = AlignedInceptionResNet(norm="bn", frozen_stages=0)
        classifier = nn.Linear(network.channels["res5"], 1000)
    assert millions([*network.parameters(), *classifier.parameters()]) == 64.38
    weights = {name: each.weight for name, each in convolutions(network).items()}
    assert (
        millions([each for name, each in network.named_parameters() if name.rpartition(".")[0] not in weights]) == 0.13
    )
    assert millions(list(weights.values())) == 62.20
    for stage, published in (("layer1", 0.31), ("layer2", 1.75), ("layer3", 38.76), ("layer4", 21.36)):
        assert millions([weight for name, weight in weights.items() if name.startswith(stage)]) == published
    assert network.channels == {"res2": 256, "res3": 512, "res4": 1024, "res5": 2048}
    assert network.strides == {"res2": 4, "res3": 8, "res4": 16, "res5": 16}


def published_block(state: dict[str, Tensor], x: Tensor, stride: int, dilation: int, stride_on_3x3: bool) -> Tensor:
    """The block as a table of layers, from plain functions and the weights alone."""

    def norm(name: str, x: Tensor) -> Tensor:
        mean, var, weight, bias = (
            state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, var, weight, bias)

    def conv(name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        reach = dilation if weight.shape[-1] == 3 else 0
        return F.conv2d(x, weight, stride=stride, padding=reach, dilation=dilation if reach else 1)

    first, second = (1, stride) if stride_on_3x3 else (stride, 1)
    one = conv("branch1.layers.0", x, first)
    one = conv("branch1.layers.3", norm("branch1.layers.1", one).relu(), second)
    two = conv("branch2.layers.0", x, first)
    two = conv("branch2.layers.3", norm("branch2.layers.1", two).relu(), second)
    two = conv("branch2.layers.6", norm("branch2.layers.4", two).relu())
    joined = norm("bn1", torch.cat([one, two], dim=1)).relu()
    identity = norm("downsample.1", conv("downsample.0", x, stride)) if "downsample.0.weight" in state else x
    return (norm("bn2", conv("conv", joined)) + identity).relu()


@pytest.mark.parametrize("stride_on", ["first_1x1", "3x3"])
def test_numbers_of_the_published_table(stride_on: Any) -> None:
    torch.manual_seed(0)
    network = AlignedInceptionResNet(**SMALL, stride_on=stride_on, res5_dilation=(1, 2, 3)).eval()
    scramble(network, seed=1)
    x = torch.randn(1, 3, 97, 75)
    with torch.no_grad():
        expected = F.max_pool2d(network.bn1(F.conv2d(x, network.conv1.weight, stride=2, padding=3)).relu(), 3, 2, 1)
        actual = network(x)
        for index, (stage, features) in enumerate(actual.items()):
            for position, block in enumerate(network.get_submodule(f"layer{index + 1}").children()):
                stride = 2 if position == 0 and stage in ("res3", "res4") else 1
                dilation = (1, 2, 3)[position] if stage == "res5" else 1
                state = block.state_dict()
                expected = published_block(state, expected, stride, dilation, stride_on == "3x3")
            assert features.shape[1] == network.channels[stage]
            size = features.abs().max()
            torch.testing.assert_close(features / size, expected / size, atol=1e-5, rtol=0, msg=stage)


def test_dilation_reaches_all_convolutions_larger_than_one() -> None:
    network = AlignedInceptionResNet(**SMALL)
    dilated = [name for name, each in convolutions(network).items() if each.dilation != (1, 1)]
    assert dilated == [
        f"layer4.{block}.branch{branch}.layers.{layer}"
        for block in range(3)
        for branch, layer in ((1, 3), (2, 3), (2, 6))
    ]
    assert all(each.padding == each.dilation for name, each in convolutions(network).items() if name in dilated)


@pytest.mark.parametrize("stride_on, layer", [("first_1x1", 0), ("3x3", 3)])
def test_where_the_stride_is(stride_on: Any, layer: int) -> None:
    network = AlignedInceptionResNet(**SMALL, stride_on=stride_on)
    strided = [name for name, each in convolutions(network).items() if each.stride[0] == 2]
    expected = [f"{part}.0.{name}" for part in ("layer2", "layer3") for name in (
        f"branch1.layers.{layer}", f"branch2.layers.{layer}", "downsample.0")]  # fmt: skip
    assert strided == ["conv1", *expected]


@pytest.mark.parametrize(
    "names, deformable",
    [
        (("res5c",), ["layer4.2.branch1.layers.3", "layer4.2.branch2.layers.3", "layer4.2.branch2.layers.6"]),
        (("res5a_branch2c", "res4b22_branch1b"), ["layer3.22.branch1.layers.3", "layer4.0.branch2.layers.6"]),
        (("res5b", "res5b_branch1b"), [f"layer4.1.branch{b}.layers.{i}" for b, i in ((1, 3), (2, 3), (2, 6))]),
    ],
)
def test_deformable_placement(names: tuple[str, ...], deformable: list[str]) -> None:
    torch.manual_seed(0)
    plain = AlignedInceptionResNet(**SMALL).eval()
    network = AlignedInceptionResNet(**SMALL, deform=DeformableBlocks(names, lr_mult=0.1)).eval()
    assert [name for name, each in network.named_modules() if isinstance(each, DeformConv2d)] == deformable
    assert network.lr_multipliers().keys() == {f"{n}.offset.{p}" for n in deformable for p in ("weight", "bias")}
    load_into(network, plain.state_dict(), source="plain", optional=(".offset.weight", ".offset.bias"))
    x = torch.randn(1, 3, 65, 80)
    with torch.no_grad():
        expected, actual = plain(x)["res5"], network(x)["res5"]
    torch.testing.assert_close(actual / expected.max(), expected / expected.max(), atol=1e-5, rtol=0)


def test_unknown_names_and_odd_width() -> None:
    with pytest.raises(ValueError, match="res5d"):
        AlignedInceptionResNet(**SMALL, deform=DeformableBlocks(("res5d",)))
    with pytest.raises(ValueError, match="width 7 is odd"):
        AlignedInceptionResNet(width=7)


def build(backbone: dict[str, Any], **blocks: Any) -> nn.Module:
    config = from_plain({"model": {"backbone": backbone, **blocks}})
    model = build_detector(config, 3)
    load_backbone_weights(model.backbone, config.model.backbone)
    return model


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"deform": {"blocks": ["res5c_branch2d"]}},
            "no block 'res5c_branch2d'; did you mean 'res5c_branch2c'",
        ),
        ({"deform": {"blocks": ["res5c"], "offset_groups": 64}}, "64 does not divide res5c's 32 channels"),
        ({"width": 9}, "model.backbone.width: 9 is odd"),
        ({"weights": "torchvision"}, f"torchvision has none for {air.KIND}"),
        ({"norm": "frozen_bn"}, "'none' would leave frozen layers at random"),
    ],
)
def test_settings_that_do_not_fit(change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build({**SETTINGS, **change})


def test_trains_in_a_detector() -> None:
    torch.manual_seed(0)
    model = build(
        {**SETTINGS, "norm": "gn", "deform": {"blocks": ["res5c"], "offset_groups": 2}},
        rpn={"channels": 16, "anchors": {"scales": [1, 2]}, "post_nms": 30},
        head={"channels": 8, "hidden": 16, "pooling": "deformable", "batch_per_image": 16},
    ).train()
    images = torch.randint(0, 256, (1, 3, 96, 112), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    target = Target(torch.tensor([[10.0, 12, 50, 60], [30, 5, 90, 40]]), torch.tensor([0, 2]))
    sum(model(Batch(images, [ImageInfo(0, "", 96, 112, 96, 112)], [target])).values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("frozen_stages", [0, 1, 2, 5])
def test_frozen_stages(frozen_stages: int) -> None:
    network = AlignedInceptionResNet(**SMALL, norm="bn", frozen_stages=frozen_stages).train()
    for index, part in enumerate((network.bn1, *(network.get_submodule(f"layer{i}") for i in range(1, 5)))):
        assert part.training == (index >= frozen_stages)
        assert all(each.requires_grad == (index >= frozen_stages) for each in part.parameters())
