"""The form of a network for inference: batch norm with constant statistics is part of the convolution before it."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcn_det.models.norm import FrozenBatchNorm2d
from dcn_det.ops import DeformConv2d

Network = TypeVar("Network", bound=nn.Module)
NORMS = (FrozenBatchNorm2d, nn.BatchNorm2d, nn.SyncBatchNorm)


class FoldedConv(nn.Module):
    """Convolution and batch norm as one convolution with a bias, followed by an optional addition and ReLU.

    On CUDA, cuDNN computes all of it in one kernel. Launching four kernels for every layer takes longer than the work
    for one image.

    Args:
        conv: plain or deformable, without bias; its weight is replaced.
        norm: batch norm, whose statistics are taken as constants.
        dtype: of the new weight and bias.
    """

    def __init__(self, conv: nn.Conv2d | DeformConv2d, norm: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        gamma, beta, mean, variance = (
            getattr(norm, name) for name in ("weight", "bias", "running_mean", "running_var")
        )
        with torch.no_grad():
            scale = (variance + norm.eps).rsqrt()
            scale = scale if gamma is None else scale * gamma
            shift = -mean * scale if beta is None else beta - mean * scale
            weight = (conv.weight * scale[:, None, None, None]).to(dtype)
        conv.weight = nn.Parameter(weight, requires_grad=False)
        conv.bias = nn.Parameter(shift.to(dtype), requires_grad=False)
        self.conv = conv
        self.joins = type(conv) is nn.Conv2d and conv.padding_mode == "zeros"

    def forward(self, x: Tensor, *, add: Tensor | None = None, relu: bool = False) -> Tensor:
        """Maps (B, in_channels, H, W) to (B, out_channels, H_out, W_out); ``add`` has the shape of the result."""
        if relu and self.joins and x.is_cuda and torch.backends.cudnn.enabled and torch.version.cuda is not None:
            joint = self._joint(x, add)
            if joint is not None:
                return joint
        x = self.conv(x)
        if add is not None:
            x += add
        return F.relu(x, inplace=True) if relu else x

    def _joint(self, x: Tensor, add: Tensor | None) -> Tensor | None:
        """One call of cuDNN; None if it has no kernel for this layer."""
        conv: Any = self.conv
        dtype = conv.weight.dtype
        sizes = (conv.stride, conv.padding, conv.dilation, conv.groups)
        try:
            if add is None:
                return torch.cudnn_convolution_relu(x.to(dtype), conv.weight, conv.bias, *sizes)
            return torch.cudnn_convolution_add_relu(x.to(dtype), conv.weight, add.to(dtype), 1.0, conv.bias, *sizes)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            self.joins = False
            return None


def fold(network: Network, dtype: torch.dtype) -> Network:
    """Returns a copy of a network, in evaluation mode, in which batch norm is folded into convolutions.

    The copy shares all other parameters and buffers with the network, which does not change. Results differ by
    rounding. Modules say which of their layers belong together: ``conv_norms`` are pairs of names of a convolution and
    of the normalization that :func:`dcn_det.models.backbones.convolution.conv_norm` applies to its output.

    Args:
        network: any network.
        dtype: of the folded convolutions' weights: the precision of inference.
    """
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    result = copy.deepcopy(network, shared).eval()
    for module in list(result.modules()):
        for conv_name, norm_name in getattr(module, "conv_norms", ()):
            conv, norm = module.get_submodule(conv_name), module.get_submodule(norm_name)
            if _suits(conv, norm):
                assert isinstance(conv, nn.Conv2d | DeformConv2d)
                module.set_submodule(conv_name, FoldedConv(conv, norm, dtype))
    return result


def _suits(conv: nn.Module, norm: nn.Module) -> bool:
    plain = isinstance(conv, nn.Conv2d | DeformConv2d) and conv.bias is None
    return plain and isinstance(norm, NORMS) and norm.running_var is not None


class Folding:
    """Keeps the folded form of a network, and folds again when a weight or statistic has changed.

    Changes are noticed as far as PyTorch counts them (``tensor._version``), as for autograd.

    Args:
        network: any network.
        dtype: see :func:`fold`.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        self._network, self._dtype = network, dtype
        self._modules = list(network.modules())
        layers = [
            module.get_submodule(name)
            for module in self._modules
            for names in getattr(module, "conv_norms", ())
            for name in names
        ]
        self._sources = [tensor for layer in layers for tensor in (*layer.parameters(), *layer.buffers())]
        self._folded: tuple[tuple[int, ...], nn.Module] | None = None

    def current(self) -> nn.Module:
        """Returns the folded form, or the network itself while that could compute something else.

        This is the case while a module has hooks, which the copy would not run, or is compiled, or if nothing can be
        folded.
        """
        for module in self._modules:
            if module._forward_hooks or module._forward_pre_hooks or module._compiled_call_impl is not None:
                return self._network
        if not self._sources or any(tensor.is_inference() for tensor in self._sources):
            return self._network
        state = tuple(number for tensor in self._sources for number in (tensor._version, tensor.data_ptr()))
        if self._folded is None or self._folded[0] != state:
            self._folded = state, fold(self._network, self._dtype)
        return self._folded[1]
