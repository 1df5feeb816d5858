"""Convolutions in half precision that frozen batch norm is folded into."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcn_det.models.norm import FrozenBatchNorm2d

CHANNELS = {"cuda": 8}
"""Numbers of input channels are padded to a multiple of this, by device type; otherwise cuDNN is slow."""


def conv_norm(conv: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
    """Computes ``norm(conv(x))``.

    Where autocast lowers the precision and no gradients are needed, as in testing and in frozen stages, a frozen batch
    norm is folded into the weights of a plain convolution. The result is kept until a parameter or statistic changes,
    as far as PyTorch counts that (``tensor._version``): casting 43 million weights and launching a batch norm in three
    kernels for every layer takes longer than the convolutions of one image.

    Args:
        conv: a convolution, plain or deformable.
        norm: any normalization.
        x: (B, in_channels, H, W).
    """
    kept = _folded(conv, norm, x) if _suits(conv, norm, x) else None
    if kept is None:
        result: Tensor = norm(conv(x))
        return result
    assert isinstance(conv, nn.Conv2d)
    weight, bias = kept
    if x.dtype != weight.dtype:
        x = x.to(weight.dtype)
    missing = weight.shape[1] - x.shape[1]
    if missing:
        x = F.pad(x, (0, 0, 0, 0, 0, missing))
    pointwise = conv.kernel_size == (1, 1) and conv.stride == (1, 1) and conv.padding == (0, 0)
    if pointwise and x.is_contiguous(memory_format=torch.channels_last):
        # The product adds the bias itself, and calls of cuBLAS take less time on the CPU than those of cuDNN.
        batch, channels, height, width = x.shape
        cells = x.permute(0, 2, 3, 1).view(-1, channels)
        product = torch.addmm(bias, cells, weight.view(-1, channels).t())
        return product.view(batch, height, width, len(bias)).permute(0, 3, 1, 2)
    return F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation)


def _suits(conv: nn.Module, norm: nn.Module, x: Tensor) -> bool:
    if type(norm) is not FrozenBatchNorm2d or type(conv) is not nn.Conv2d or torch.compiler.is_compiling():
        return False
    device_type = x.device.type
    if device_type == "meta" or not torch.is_autocast_enabled(device_type):
        return False
    if torch.is_grad_enabled() and (x.requires_grad or conv.weight.requires_grad):
        return False
    plain = conv.groups == 1 and conv.bias is None and conv.padding_mode == "zeros"
    hooked = conv._forward_hooks or conv._forward_pre_hooks or norm._forward_hooks or norm._forward_pre_hooks
    return plain and not hooked


_Kept = tuple[list[Tensor], tuple[Any, ...], Tensor, Tensor]
_kept: WeakKeyDictionary[nn.Module, _Kept] = WeakKeyDictionary()


def _folded(conv: nn.Module, norm: nn.Module, x: Tensor) -> tuple[Tensor, Tensor] | None:
    """Weight and bias in half precision; None if changes of the originals could not be noticed."""
    assert isinstance(norm, FrozenBatchNorm2d)
    values, weight = norm._buffers, conv._parameters["weight"]  # much faster than attributes
    gamma, beta, mean, variance = (values[name] for name in ("weight", "bias", "running_mean", "running_var"))
    assert weight is not None and gamma is not None and beta is not None and mean is not None and variance is not None
    sources = [weight, gamma, beta, mean, variance]
    dtype, eps = torch.get_autocast_dtype(x.device.type), norm.eps
    if weight.dtype != torch.float32:
        return None
    try:
        state = (dtype, eps, weight.data_ptr(), *(each._version for each in sources))
    except RuntimeError:  # tensors of inference mode do not count their changes
        return None
    kept = _kept.get(conv)
    if kept is not None and kept[1] == state and all(map(_same, kept[0], sources)):
        return kept[2:]
    with torch.inference_mode(False), torch.no_grad():  # ordinary tensors, so that they serve in training, too
        scale = gamma / (variance + eps).sqrt()
        shift = beta - mean * scale
        folded = weight * scale[:, None, None, None]
        missing = -weight.shape[1] % CHANNELS.get(x.device.type, 1)
        if missing:
            folded = F.pad(folded, (0, 0, 0, 0, 0, missing))
        _kept[conv] = (sources, state, folded.to(dtype), shift.to(dtype))
    return _kept[conv][2:]


def _same(a: Tensor, b: Tensor) -> bool:
    return a is b
