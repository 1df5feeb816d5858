"""Batch norm as part of convolutions."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcn_det.models.backbones.aligned_inception_resnet import AlignedInceptionResNet
from dcn_det.models.backbones.convolution import DeformableBlocks, conv_norm
from dcn_det.models.backbones.resnet import ResNet
from dcn_det.models.folded import FoldedConv, Folding, fold
from dcn_det.models.norm import FrozenBatchNorm2d
from dcn_det.ops import DeformConv2d

BACKBONES: dict[str, Any] = {
    "basic": lambda **options: ResNet("resnet18", width=8, stem_width=8, **options),
    "bottleneck": lambda **options: ResNet("resnet50", width=8, stem_width=8, **options),
    "deformable": lambda **options: ResNet(
        "resnet50", width=8, stem_width=8, deform=DeformableBlocks(("res5a", "res5b", "res5c"), kind="v2"), **options
    ),
    "aligned": lambda **options: AlignedInceptionResNet(
        width=8, stem_width=8, deform=DeformableBlocks(("res5c",), offset_groups=2), **options
    ),
}


def trained(name: str, **options: object) -> Any:
    """Returns a backbone whose statistics and offsets are not the initial ones, in evaluation mode."""
    torch.manual_seed(0)
    network = BACKBONES[name](**options).eval()
    for module in network.modules():
        if hasattr(module, "running_var"):
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 2)
            with torch.no_grad():
                module.weight.uniform_(0.3, 0.6)
                module.bias.normal_(std=0.1)
        if isinstance(module, DeformConv2d):
            nn.init.normal_(module.offset.weight, std=0.05)
    return network


def images() -> Tensor:
    return torch.randn(2, 3, 97, 70, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("norm", ["frozen_bn", "bn"])
@pytest.mark.parametrize("name", BACKBONES)
@torch.no_grad()
def test_folded_backbones_compute_the_same(name, norm):
    network = trained(name, norm=norm)
    before = copy.deepcopy(network.state_dict())
    expected, found = network(images()), fold(network, torch.float32)(images())
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        assert value.std() > 0.05
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@torch.no_grad()
def test_every_convolution_before_a_batch_norm_is_folded():
    called: list[nn.Module] = []
    for name, convolutions in (("bottleneck", 53), ("deformable", 53), ("basic", 20)):
        folded = fold(trained(name), torch.float32)
        assert sum(isinstance(module, FoldedConv) for module in folded.modules()) == convolutions
        for module in folded.modules():
            if isinstance(module, FrozenBatchNorm2d):
                module.register_forward_hook(lambda module, *_: called.append(module))
        folded(images())
    assert not called


def test_other_normalization_is_left_alone():
    network = trained("bottleneck", norm="gn")
    assert not any(isinstance(module, FoldedConv) for module in fold(network, torch.float32).modules())


def test_the_copy_shares_everything_else():
    network = trained("deformable")
    own = {tensor.data_ptr() for tensor in (*network.parameters(), *network.buffers()) if tensor.numel()}
    folded = fold(network, torch.float32)
    for name, tensor in folded.named_parameters():
        replaced = name.endswith(("conv.weight", "conv.bias"))
        assert (tensor.data_ptr() in own) is not replaced, name


@torch.no_grad()
def test_half_precision():
    network = trained("deformable")
    folded = fold(network, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found, rounded = folded(images())["res5"].float(), network(images())["res5"].float()
    expected = network(images())["res5"]
    error = (found - expected).norm() / expected.norm()
    assert error < 1.5 * (rounded - expected).norm() / expected.norm()
    assert error < 0.03


@pytest.mark.parametrize("added", [False, True])
def test_one_call_of_cudnn(added, monkeypatch):
    """Arguments of cuDNN's calls, whose kernels are replaced by plain ones."""
    calls = []

    def joint(x, weight, bias, stride, padding, dilation, groups):
        calls.append("relu")
        return F.relu(F.conv2d(x, weight, bias, stride, padding, dilation, groups))

    def joint_add(x, weight, add, alpha, bias, stride, padding, dilation, groups):
        calls.append("add_relu")
        return F.relu(F.conv2d(x, weight, bias, stride, padding, dilation, groups) + alpha * add)

    monkeypatch.setattr(torch, "cudnn_convolution_relu", joint, raising=False)
    monkeypatch.setattr(torch, "cudnn_convolution_add_relu", joint_add, raising=False)
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(4, 6, 3, 2, 2, 2, bias=False), FrozenBatchNorm2d(6)
    norm.running_var.uniform_(0.5, 2)
    norm.bias.normal_()
    x = torch.randn(2, 4, 9, 11)
    add = torch.randn(2, 6, 5, 6) if added else None
    expected = conv_norm(conv, norm, x, add=add)
    layer = FoldedConv(conv, norm, torch.float32)
    found = layer._joint(x, add)
    assert calls == ["add_relu" if added else "relu"]
    torch.testing.assert_close(found, expected)
    assert layer.joins

    def fails(*args):
        raise RuntimeError("no engine")

    monkeypatch.setattr(torch, "cudnn_convolution_relu", fails)
    monkeypatch.setattr(torch, "cudnn_convolution_add_relu", fails)
    assert layer._joint(x, add) is None and not layer.joins
    torch.testing.assert_close(layer(x, add=add, relu=True), expected)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", BACKBONES)
@torch.no_grad()
def test_on_a_gpu(name, dtype, monkeypatch):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    network = trained(name).cuda().to(memory_format=torch.channels_last)
    folded, x = fold(network, dtype), images().cuda()
    calls = []
    joint = FoldedConv._joint

    def counted(layer, *args):
        calls.append(layer)
        return joint(layer, *args)

    monkeypatch.setattr(FoldedConv, "_joint", counted)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        expected = network(x)["res5"]
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            found = folded(x)["res5"].float()
    tolerance = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}[dtype]
    assert (found - expected).norm() / expected.norm() < tolerance
    assert calls and all(layer.joins for layer in calls)


class TestFolding:
    def test_follows_changes_of_weights_and_statistics(self):
        network = trained("basic")
        folding = Folding(network, torch.float32)
        first = folding.current()
        assert first is not network and folding.current() is first
        with torch.no_grad():
            network.layer1[0].conv1.weight.mul_(2)
        second = folding.current()
        assert second is not first
        torch.testing.assert_close(second(images())["res5"], network(images())["res5"], rtol=1e-4, atol=1e-4)
        network.load_state_dict({name: value.clone() for name, value in network.state_dict().items()})
        assert folding.current() is not second
        third = folding.current()
        network.layer2[0].bn1.running_var.add_(1)
        assert folding.current() is not third

    def test_modules_with_hooks_run_themselves(self):
        network = trained("basic")
        folding = Folding(network, torch.float32)
        assert folding.current() is not network
        hook = network.layer3[0].register_forward_hook(lambda *_: None)
        assert folding.current() is network
        hook.remove()
        assert folding.current() is not network

    def test_compiled_modules_run_themselves(self):
        network = trained("basic")
        network.compile(backend="eager")
        assert Folding(network, torch.float32).current() is network

    def test_networks_without_normalization(self):
        network = nn.Sequential(nn.Conv2d(3, 4, 1))
        assert Folding(network, torch.float32).current() is network
