"""Deformable convolution: the function :func:`deform_conv2d` and the module :class:`DeformConv2d`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dcn_det.ops import library
from dcn_det.ops.deform_conv_check import check_arguments, check_border, pair_of
from dcn_det.ops.deform_conv_rules import OPERATOR


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    mask: Tensor | None = None,
    *,
    border: str = "zeros",
) -> Tensor:
    """Deformable convolution: every tap of the kernel samples the input at a place of its own.

    The arguments are those of ``torchvision.ops.deform_conv2d``, in its order. The number of groups and of
    offset groups follows from the shapes. Source: Dai et al., "Deformable Convolutional Networks" (2017),
    section 2.1; the mask: Zhu et al., "Deformable ConvNets v2" (2019), section 3.2.

    Args:
        input: (N, C, H, W), float32, float64, float16 or bfloat16.
        offset: (N, 2 * offset_groups * kh * kw, H_out, W_out), in cells of the input. For the channels of
            offset group g and tap k = row * kw + column, channel ``2 * (g * kh * kw + k)`` is added to the
            tap's y and the next channel to its x. The input's dtype, or float32 beside a half-precision
            input; coordinates are computed in float32 (float64 for a float64 input) in any case.
        weight: (C_out, C / groups, kh, kw), the input's dtype.
        bias: (C_out,), the input's dtype.
        stride: of the sampling grid, an int or (y, x).
        padding: an int or (y, x); it shifts the grid and adds to the output's size.
        dilation: the distance of the kernel's taps, an int or (y, x).
        mask: (N, offset_groups * kh * kw, H_out, W_out), the input's dtype; multiplies the samples.
        border: what samples beyond the map read. ``"zeros"``: the map is surrounded by zeros, with which
            bilinear samples blend within one cell of it, as in torchvision, mmcv and DCNv2. ``"dcn_v1"``: the
            rule of the authors' released code: zero outside [0, H) x [0, W), while y in [H - 1, H) reads the
            last row at full strength and x in [W - 1, W) the last column. The rules differ next to the border
            only, and give equal values for zero offsets. Weights belong to the rule they were trained with.

    Returns:
        (N, C_out, H_out, W_out), the input's dtype, in channels-last memory where the input lies so. With
        zero offsets and no mask it is ``torch.nn.functional.conv2d``.

    Raises:
        ValueError: an argument does not fit; the message tells which, what it is and what was expected.

    Offsets that are not finite read zero and receive zero gradients. Autocast casts all but the offsets. The
    gradient is once differentiable, and deterministic on the CPU. On CUDA the input's gradient is summed by
    atomic additions, in an order that varies. Under ``torch.use_deterministic_algorithms(True)`` its terms are
    rounded to a fixed-point grid and added as 64-bit integers (two for float64), to the same bits every time:
    for n terms the grid is about ``n * 2 ** -60`` of the largest a term could be (``n ** 2 * 2 ** -120`` in
    float64), and a gradient that is not finite makes the whole input gradient NaN.
    """
    stride, padding, dilation = (
        pair_of("stride", stride),
        pair_of("padding", padding),
        pair_of("dilation", dilation),
    )
    check_arguments(input, offset, weight, bias, mask, stride, padding, dilation, border)
    return OPERATOR(input, offset, weight, bias, mask, stride, padding, dilation, border)


class DeformConv2d(nn.Module):
    """A convolution that learns where to sample, with the branch that predicts the offsets.

    ``offset``, a convolution over the same input, predicts a (y, x) offset for every tap of every output
    position. It starts at zero, with its bias, so that a new module equals ``nn.Conv2d`` with the same
    weights. A modulated one (Zhu et al., 2019) starts at half of it: its mask is the sigmoid of a prediction,
    which starts at zero. Under autocast the branch keeps its own dtype, because coordinates need the digits:
    between 16 and 32 cells bfloat16 tells only eighths apart.

    Parameters are ``weight``, ``bias``, ``offset.weight`` and ``offset.bias``. The branch has
    ``2 * offset_groups * kh * kw`` output channels, and ``offset_groups * kh * kw`` more for the mask.

    Args:
        in_channels: C of the input (N, C, H, W).
        out_channels: C of the output.
        kernel_size: an int or (y, x), as are stride, padding and dilation.
        stride: see :func:`deform_conv2d`.
        padding: see :func:`deform_conv2d`.
        dilation: see :func:`deform_conv2d`.
        groups: as in ``nn.Conv2d``.
        bias: whether the deformable convolution has a bias; its offset branch always has.
        offset_groups: the input's channels are divided into this many groups, each with offsets of its own.
        modulated: whether a mask in (0, 1) multiplies the samples.
        border: see :func:`deform_conv2d`.
        offset_dilation: dilation of the offset branch; unless given, that of the deformable convolution. The
            branch's padding follows, so that the offsets have the output's height and width.

    Raises:
        ValueError: channels are not divisible by the groups, or no padding suits ``offset_dilation``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        offset_groups: int = 1,
        modulated: bool = False,
        border: str = "zeros",
        offset_dilation: int | Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        for name, channels, divisor in (
            ("in_channels", in_channels, groups),
            ("out_channels", out_channels, groups),
            ("in_channels", in_channels, offset_groups),
        ):
            if divisor < 1 or channels < 1 or channels % divisor:
                raise ValueError(f"DeformConv2d: {name} is {channels}; expected a multiple of {divisor}, the groups")
        check_border(border)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size = pair_of("kernel_size", kernel_size)
        self.stride, self.padding = pair_of("stride", stride), pair_of("padding", padding)
        self.dilation = pair_of("dilation", dilation)
        self.groups, self.offset_groups = groups, offset_groups
        self.modulated, self.border = modulated, border
        branch_dilation = self.dilation
        if offset_dilation is not None:
            branch_dilation = pair_of("offset_dilation", offset_dilation)
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *self.kernel_size))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.offset = nn.Conv2d(
            in_channels,
            (3 if modulated else 2) * offset_groups * math.prod(self.kernel_size),
            self.kernel_size,
            self.stride,
            self._offset_padding(branch_dilation),
            branch_dilation,
        )
        self.reset_parameters()

    def _offset_padding(self, branch_dilation: tuple[int, int]) -> tuple[int, int]:
        paddings = []
        for size, padding, own, branch in zip(self.kernel_size, self.padding, self.dilation, branch_dilation):
            twice = 2 * padding + (branch - own) * (size - 1)
            if twice % 2 or twice < 0:
                raise ValueError(
                    f"DeformConv2d: offset_dilation is {branch}; expected one for which the offset branch "
                    f"needs a whole, non-negative padding, not {twice / 2:g} (kernel size {size}, padding "
                    f"{padding}, dilation {own})"
                )
            paddings.append(twice // 2)
        return paddings[0], paddings[1]

    def reset_parameters(self) -> None:
        """Initialises the weight and bias as ``nn.Conv2d`` does, and the offset branch with zeros."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight[0].numel())
            nn.init.uniform_(self.bias, -bound, bound)
        for parameter in self.offset.parameters():
            nn.init.zeros_(parameter)

    def sampling(self, input: Tensor) -> tuple[Tensor, Tensor | None]:
        """Predicts where to sample: the offsets and, when modulated, the mask of :func:`deform_conv2d`.

        Args:
            input: (N, in_channels, H, W).
        """
        with library.without_autocast(input.device.type):
            predicted = self.offset(input.to(self.offset.weight.dtype))
            if not self.modulated:
                return predicted, None
            channels = 2 * self.offset_groups * math.prod(self.kernel_size)
            return predicted[:, :channels], predicted[:, channels:].sigmoid()

    def forward(self, input: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H_out, W_out)."""
        offset, mask = self.sampling(input)
        return deform_conv2d(
            input,
            offset,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            mask,
            border=self.border,
        )

    def extra_repr(self) -> str:
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"]
        defaults = {
            "stride": (1, 1),
            "padding": (0, 0),
            "dilation": (1, 1),
            "groups": 1,
            "offset_groups": 1,
            "modulated": False,
            "border": "zeros",
        }
        for name, default in defaults.items():
            if getattr(self, name) != default:
                parts.append(f"{name}={getattr(self, name)!r}")
        if self.bias is None:
            parts.append("bias=False")
        return ", ".join(parts)
