"""Tests of what half precision computes in another way."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from dcn_det.models.backbones import fold
from dcn_det.models.backbones.fold import conv_norm
from dcn_det.models.norm import FrozenBatchNorm2d
from dcn_det.models.pointwise import pointwise


def layers(in_channels: int = 3) -> tuple[nn.Conv2d, FrozenBatchNorm2d]:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(in_channels, 16, 3, stride=2, padding=2, dilation=2, bias=False), FrozenBatchNorm2d(16)
    for buffer in norm.buffers():
        buffer.uniform_(0.5, 2)
    return conv, norm


def folded(conv: nn.Conv2d, norm: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        return conv_norm(conv, norm, x)


@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize("inference", [False, True])
def test_folded_batch_norm(monkeypatch: pytest.MonkeyPatch, multiple: int, inference: bool) -> None:
    monkeypatch.setattr(fold, "CHANNELS", {"cpu": multiple})
    conv, norm = layers()
    x = torch.randn(2, 3, 12, 15)
    with torch.inference_mode(inference):
        found = folded(conv, norm, x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), norm(conv(x)), atol=0.05, rtol=0.02)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("stride", [1, 2])
def test_folded_1x1_convolution(layout: torch.memory_format, stride: int) -> None:
    norm = layers()[1]
    conv = nn.Conv2d(8, 16, 1, stride, bias=False).to(memory_format=layout)
    x = torch.randn(2, 8, 6, 7).to(memory_format=layout)
    found = folded(conv, norm, x)
    assert found.is_contiguous(memory_format=layout)
    torch.testing.assert_close(found.float(), norm(conv(x)), atol=0.05, rtol=0.02)


def test_changed_weights_and_statistics_are_folded_again() -> None:
    conv, norm = layers()
    x = torch.randn(1, 3, 8, 8)
    before = folded(conv, norm, x)
    assert torch.equal(folded(conv, norm, x), before)
    with torch.no_grad():
        conv.weight.mul_(2)
    torch.testing.assert_close(folded(conv, norm, x).float(), norm(conv(x)), atol=0.1, rtol=0.02)
    norm.running_mean.add_(3)
    torch.testing.assert_close(folded(conv, norm, x).float(), norm(conv(x)), atol=0.1, rtol=0.02)
    conv.load_state_dict({"weight": torch.zeros_like(conv.weight)})
    torch.testing.assert_close(folded(conv, norm, x).float(), norm(conv(x)), atol=0.1, rtol=0.02)
    other = copy.deepcopy(conv)
    nn.init.ones_(other.weight)
    torch.testing.assert_close(folded(other, norm, x).float(), norm(other(x)), atol=0.2, rtol=0.02)


def test_nothing_is_folded_in_float32_or_where_gradients_are_needed() -> None:
    conv, norm = layers()
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(conv_norm(conv, norm, x), norm(conv(x)))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(conv_norm(conv, norm, x), norm(conv(x)))
        conv_norm(conv, norm, x).sum().backward()
    assert conv.weight.grad is not None
    assert conv not in fold._kept


def test_frozen_layers_that_were_tested_before_are_trained_through() -> None:
    conv, norm = layers(8)
    conv.requires_grad_(False)
    behind = nn.Conv2d(16, 4, 1)
    x = torch.randn(1, 8, 8, 8)
    with torch.inference_mode():
        folded(conv, norm, x)
    with torch.autocast("cpu", torch.bfloat16):
        behind(conv_norm(conv, norm, x)).sum().backward()
    assert conv in fold._kept
    assert behind.weight.grad is not None and behind.weight.grad.isfinite().all()


def test_weights_of_inference_mode_are_not_kept() -> None:
    with torch.inference_mode():
        conv, norm = layers()
        folded(conv, norm, torch.randn(1, 3, 8, 8))
    assert conv not in fold._kept


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_pointwise_product(layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(12, 7, 1)
    x = torch.randn(2, 12, 4, 5).to(memory_format=layout).to(torch.bfloat16).requires_grad_()
    found = pointwise(layer, x)
    assert found.dtype == torch.bfloat16 and found.is_contiguous()
    gradient = torch.randn_like(found)
    ours = torch.autograd.grad(found, [x, layer.weight, layer.bias], gradient)
    exact = x.detach().float().requires_grad_()
    wanted = layer(exact)
    torch.testing.assert_close(found.float(), wanted, atol=0.03, rtol=0.02)
    theirs = torch.autograd.grad(wanted, [exact, layer.weight, layer.bias], gradient.float())
    for mine, other in zip(ours, theirs):
        torch.testing.assert_close(mine.float(), other, atol=0.1, rtol=0.03)


def test_pointwise_in_float32_is_the_convolution() -> None:
    layer, x = nn.Conv2d(12, 7, 1), torch.randn(2, 12, 4, 5)
    assert torch.equal(pointwise(layer, x), layer(x))
