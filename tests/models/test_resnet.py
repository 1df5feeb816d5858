from dataclasses import replace
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from dcn_det.models.backbones.convolution import DeformableBlocks
from dcn_det.models.backbones.resnet import DEPTHS, ResNet, block_names
from dcn_det.models.norm import FrozenBatchNorm2d
from dcn_det.weights.files import load_into
from tests.models.helpers import scramble

AS_TORCHVISION = {"stride_on": "3x3", "stem_pool": "pad", "res5_stride": 2, "res5_dilation": 1}


def torchvision_stages(network: torchvision.models.ResNet, x: torch.Tensor) -> dict[str, torch.Tensor]:
    x = network.maxpool(network.relu(network.bn1(network.conv1(x))))
    stages = {}
    for index in range(1, 5):
        x = getattr(network, f"layer{index}")(x)
        stages[f"res{index + 1}"] = x
    return stages


@pytest.mark.parametrize(
    "kind, dilated",
    [("resnet18", False), ("resnet50", False), ("resnet50", True), ("resnet101", False), ("resnet101", True)],
)
def test_equals_torchvision(kind: str, dilated: bool) -> None:
    torch.manual_seed(0)
    options, ours = {}, dict(AS_TORCHVISION)
    if dilated:
        # torchvision leaves the first block at the dilation it had.
        options["replace_stride_with_dilation"] = (False, False, True)
        ours |= {"res5_stride": 1, "res5_dilation": (1, 2, 2)}
    theirs = torchvision.models.get_model(kind, weights=None, **options).eval()
    scramble(theirs)
    network = ResNet(kind, **ours).eval()
    load_into(network, theirs.state_dict(), source="torchvision", ignored=("fc.",))
    x = torch.randn(1, 3, 97, 75)
    with torch.no_grad():
        expected, actual = torchvision_stages(theirs, x), network(x)
    for stage, value in expected.items():
        assert actual[stage].shape[1] == network.channels[stage]
        scale = value.abs().max()
        torch.testing.assert_close(actual[stage] / scale, value / scale, atol=1e-5, rtol=0, msg=stage)
    assert network.strides["res5"] == (16 if dilated else 32)


def test_block_names() -> None:
    assert block_names("resnet50")[-6:] == ("res4d", "res4e", "res4f", "res5a", "res5b", "res5c")
    names = block_names("resnet101")
    assert names[:7] == ("res2a", "res2b", "res2c", "res3a", "res3b1", "res3b2", "res3b3")
    assert names[7:9] == ("res4a", "res4b1") and names[-4:] == ("res4b22", "res5a", "res5b", "res5c")
    assert block_names("resnet152")[3:11] == ("res3a", *(f"res3b{i}" for i in range(1, 8)))
    assert all(len(block_names(kind)) == sum(depths) for kind, depths in DEPTHS.items())


def convolutions(network: nn.Module) -> dict[str, nn.Conv2d]:
    return {name: each for name, each in network.named_modules() if isinstance(each, nn.Conv2d)}


@pytest.mark.parametrize("stride_on, strided", [("first_1x1", "conv1"), ("3x3", "conv2")])
def test_where_the_stride_is(stride_on: str, strided: str) -> None:
    network = ResNet("resnet50", width=4, stem_width=4, stride_on=stride_on)
    strides = {name: each.stride[0] for name, each in convolutions(network).items() if each.stride != (1, 1)}
    assert strides == {
        "conv1": 2,
        **{f"{layer}.0.{name}": 2 for layer in ("layer2", "layer3") for name in (strided, "downsample.0")},
    }


def test_res5_dilation() -> None:
    network = ResNet("resnet50", width=4, stem_width=4, res5_dilation=(4, 6, 8))
    dilated = {name: each for name, each in convolutions(network).items() if each.dilation != (1, 1)}
    assert {name: each.dilation[0] for name, each in dilated.items()} == {
        "layer4.0.conv2": 4, "layer4.1.conv2": 6, "layer4.2.conv2": 8
    }  # fmt: skip
    assert all(each.padding == each.dilation for each in dilated.values())
    with pytest.raises(ValueError, match="3 blocks in res5"):
        ResNet("resnet50", res5_dilation=(2, 2))


@pytest.mark.parametrize(
    "stem_pool, size, expected",
    [("ceil", 96, 6), ("ceil", 97, 6), ("ceil", 100, 7), ("pad", 96, 6), ("pad", 97, 7)],
)
def test_size_of_the_map(stem_pool: str, size: int, expected: int) -> None:
    network = ResNet("resnet18", width=4, stem_width=4, stem_pool=stem_pool).eval()
    with torch.no_grad():
        features = network(torch.zeros(1, 3, size, 64))
    assert features["res4"].shape[2:] == features["res5"].shape[2:] == (expected, 4)


def test_backbone_parameters_of_resnet101() -> None:
    def count(**options: object) -> float:
        with torch.device("meta"):
            network = ResNet("resnet101", norm="bn", frozen_stages=0, **options)
        return round(sum(each.numel() for each in network.parameters()) / 1e6, 2)

    names = ("res5a", "res5b", "res5c")
    assert count() == 42.50
    assert count(deform=DeformableBlocks(names, offset_groups=1)) == 42.75
    assert count(deform=DeformableBlocks(names, offset_groups=4)) == 43.50


@pytest.mark.parametrize("kind, deep", [("resnet18", "layer4.0.conv2"), ("resnet50", "layer4.1.conv2")])
@pytest.mark.parametrize("options", [{}, {"border": "dcn_v1"}, {"kind": "v2"}], ids=["zeros", "dcn_v1", "v2"])
def test_deformable_starts_as_plain(kind: str, deep: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    plain = ResNet(kind, width=8, stem_width=8).eval()
    names = tuple(name for name in block_names(kind) if name.startswith("res5") or name == "res4b")
    network = ResNet(kind, width=8, stem_width=8, deform=DeformableBlocks(names, **options)).eval()
    load_into(network, plain.state_dict(), source="plain", optional=(".offset.weight", ".offset.bias"))
    assert f"{deep}.offset.weight" in network.state_dict()
    x = torch.randn(2, 3, 70, 90)
    with torch.no_grad():
        torch.testing.assert_close(network(x)["res5"], plain(x)["res5"], atol=1e-4, rtol=1e-4)


def test_modulated_offsets_and_their_dilation() -> None:
    blocks = DeformableBlocks(("res5a", "res4b"), kind="v2", offset_groups=2, offset_dilation=1)
    network = ResNet("resnet50", width=8, stem_width=8, deform=blocks)
    offset = network.get_submodule("layer4.0.conv2.offset")
    assert offset.weight.shape == (2 * 27, 64, 3, 3)
    assert offset.dilation == (1, 1)
    host = ResNet("resnet50", width=8, stem_width=8, deform=DeformableBlocks(("res5a",)))
    assert host.get_submodule("layer4.0.conv2.offset").dilation == (2, 2)


def test_gradients_reach_offsets() -> None:
    torch.manual_seed(0)
    network = ResNet("resnet50", width=8, stem_width=8, deform=DeformableBlocks(("res5a", "res5c")))
    network(torch.randn(1, 3, 64, 64))["res5"].square().mean().backward()
    for name in ("layer4.0.conv2.offset", "layer4.2.conv2.offset"):
        for parameter in network.get_submodule(name).parameters():
            assert parameter.grad is not None and parameter.grad.abs().max() > 0


def test_lr_multipliers_name_parameters() -> None:
    network = ResNet("resnet50", width=8, deform=DeformableBlocks(("res5b",), lr_mult=0.1))
    assert network.lr_multipliers() == {
        "layer4.1.conv2.offset.weight": 0.1,
        "layer4.1.conv2.offset.bias": 0.1,
    }
    assert set(network.lr_multipliers()) <= dict(network.named_parameters()).keys()
    assert ResNet("resnet50", width=8, deform=DeformableBlocks(("res5b",))).lr_multipliers() == {}


def test_offsets_and_masks_of_modulated_blocks_learn_at_a_tenth() -> None:
    blocks = DeformableBlocks(("res5b",), kind="v2", offset_groups=1)
    network = ResNet("resnet50", width=8, deform=blocks)
    names = ("layer4.1.conv2.offset.weight", "layer4.1.conv2.offset.bias")
    assert network.lr_multipliers() == dict.fromkeys(names, 0.1)
    assert network.get_parameter(names[0]).shape == (27, 64, 3, 3)  # an x, a y and a mask for each tap
    assert ResNet("resnet50", width=8, deform=replace(blocks, lr_mult=1.0)).lr_multipliers() == {}


def test_frozen_batch_norm_is_all_that_is_frozen_by_it() -> None:
    network = ResNet("resnet18", width=4, stem_width=4, frozen_stages=0)
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert not any(".bn" in name or name.startswith("bn") for name, _ in network.named_parameters())
    before = {name: value.clone() for name, value in network.named_buffers()}
    network.train()(torch.randn(2, 3, 64, 64))["res5"].sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in network.named_buffers())


def test_frozen_batch_norm_equals_batch_norm_in_evaluation() -> None:
    reference, frozen = nn.BatchNorm2d(5, eps=1e-3), FrozenBatchNorm2d(5, eps=1e-3)
    scramble(nn.ModuleDict({"bn": reference}))
    frozen.load_state_dict(reference.state_dict())
    x = torch.randn(2, 5, 4, 4)
    torch.testing.assert_close(frozen.train()(x), reference.eval()(x))


@pytest.mark.parametrize("frozen_stages", range(6))
def test_frozen_stages(frozen_stages: int) -> None:
    network = ResNet("resnet18", width=4, stem_width=4, norm="bn", frozen_stages=frozen_stages).train()
    stages = [("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",)]
    before = {name: value.clone() for name, value in network.named_buffers()}
    network(torch.randn(2, 3, 64, 64))
    for index, prefixes in enumerate(stages):
        frozen = index < frozen_stages
        for name, parameter in network.named_parameters():
            if name.split(".")[0] in prefixes:
                assert parameter.requires_grad != frozen
        for name, value in network.named_buffers():
            if name.split(".")[0] in prefixes and name.endswith("running_mean"):
                assert torch.equal(value, before[name]) == frozen


@pytest.mark.parametrize("norm, kind", [("gn", nn.GroupNorm), ("bn", nn.BatchNorm2d), ("sync_bn", nn.SyncBatchNorm)])
def test_other_norms_train(norm: str, kind: type[nn.Module]) -> None:
    network = ResNet("resnet18", width=4, stem_width=4, norm=norm, norm_eps=1e-3, frozen_stages=0)
    layers = [each for each in network.modules() if isinstance(each, kind)]
    assert len(layers) == 20 and all(layer.eps == 1e-3 for layer in layers)
    network(torch.randn(2, 3, 64, 64))["res5"].sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_channels_last_is_kept_and_changes_nothing() -> None:
    torch.manual_seed(0)
    network = ResNet("resnet50", width=8, stem_width=8, deform=DeformableBlocks(("res5a",))).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = network(x)["res5"]
        actual = network.to(memory_format=torch.channels_last)(x)["res5"]
    assert actual.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_unknown_block() -> None:
    with pytest.raises(ValueError, match="res5d"):
        ResNet("resnet50", deform=DeformableBlocks(("res5d",)))
