"""Deformable convolution: the function :func:`deform_conv2d` and the module :class:`DeformConv2d`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dcn_det.ops import library
from dcn_det.ops.deform_conv_check import check_arguments, check_border, pair_of
from dcn_det.ops.deform_conv_rules import OPERATOR, splits_products


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
    """Performs a deformable convolution: each kernel tap samples the input at its own learned offset.

    Takes the arguments of ``torchvision.ops.deform_conv2d``, in the same order. The numbers of groups and
    offset groups follow from the shapes. Source: Dai et al., "Deformable Convolutional Networks" (2017),
    section 2.1; the mask: Zhu et al., "Deformable ConvNets v2" (2019), section 3.2.

    Args:
        input: (N, C, H, W), float32, float64, float16 or bfloat16.
        offset: (N, 2 * offset_groups * kh * kw, H_out, W_out), in cells of the input. For the channels of
            offset group g and tap k = row * kw + column, channel ``2 * (g * kh * kw + k)`` is added to the
            tap's y and the next channel to its x. In the input's dtype, or float32 for a half-precision
            input; coordinates are always computed in float32 (float64 for a float64 input).
        weight: (C_out, C / groups, kh, kw), in the input's dtype.
        bias: (C_out,), in the input's dtype.
        stride: of the sampling grid, an int or (y, x).
        padding: an int or (y, x); shifts the grid and increases the output size.
        dilation: distance between kernel taps, an int or (y, x).
        mask: (N, offset_groups * kh * kw, H_out, W_out), in the input's dtype; multiplies the samples.
        border: value of samples beyond the map. ``"zeros"``: the map is surrounded by zeros, and bilinear
            samples within one cell of it blend with them, as in torchvision, mmcv and DCNv2. ``"dcn_v1"``: the
            rule of the authors' released code: zero outside [0, H) x [0, W); y in [H - 1, H) reads the last
            row at full strength and x in [W - 1, W) the last column. The rules differ only next to the border
            and agree for zero offsets. Use the rule that the weights were trained with.

    Returns:
        (N, C_out, H_out, W_out), in the input's dtype, and in channels-last memory if the input is. With zero
        offsets and no mask it equals ``torch.nn.functional.conv2d``.

    Raises:
        ValueError: if an argument is invalid; the message gives its name, its value and what was expected.

    Non-finite offsets read zero and receive zero gradients. Autocast casts everything except the offsets. The
    gradient cannot be differentiated again; on the CPU it is deterministic. On CUDA the input's gradient is
    summed with atomic additions, in varying order. Under ``torch.use_deterministic_algorithms(True)`` its terms
    are rounded to a fixed-point grid and added as 64-bit integers (two for float64), which gives the same bits
    every time: for n terms the grid step is about ``n * 2 ** -60`` of the bound on a term (``n ** 2 *
    2 ** -120`` in float64), and a non-finite gradient makes the whole input gradient NaN.

    On CUDA, a product of float32 matrices is computed as six products of bfloat16 parts, added in float32, with about
    the error of float32 (Henry et al., "Leveraging the bfloat16 Artificial Intelligence Datatype For Higher-Precision
    Computations", 2019); samples and weights that are not finite give NaN. Where PyTorch allows TF32
    (``torch.set_float32_matmul_precision("high")``) it is one product in TF32, and under
    ``torch.use_deterministic_algorithms(True)`` one product in float32.
    """
    stride, padding, dilation = (
        pair_of("stride", stride),
        pair_of("padding", padding),
        pair_of("dilation", dilation),
    )
    check_arguments(input, offset, weight, bias, mask, stride, padding, dilation, border)
    split = splits_products(input)
    return OPERATOR(input, offset, weight, bias, mask, stride, padding, dilation, border, split)


class OffsetConv2d(nn.Module):
    """Weight, bias and options of a convolution whose taps have offsets; subclasses say where the offsets come from.

    Args:
        in_channels: see :class:`DeformConv2d`, as for all arguments.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int],
        padding: int | Sequence[int],
        dilation: int | Sequence[int],
        groups: int,
        bias: bool,
        offset_groups: int,
        border: str,
    ) -> None:
        super().__init__()
        for name, channels, divisor in (
            ("in_channels", in_channels, groups),
            ("out_channels", out_channels, groups),
            ("in_channels", in_channels, offset_groups),
        ):
            if divisor < 1 or channels < 1 or channels % divisor:
                raise ValueError(
                    f"{type(self).__name__}: {name} is {channels}; expected a multiple of {divisor}, the groups"
                )
        check_border(border)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size = pair_of("kernel_size", kernel_size)
        self.stride, self.padding = pair_of("stride", stride), pair_of("padding", padding)
        self.dilation = pair_of("dilation", dilation)
        self.groups, self.offset_groups, self.border = groups, offset_groups, border
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *self.kernel_size))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None

    def reset_parameters(self) -> None:
        """Initializes weight and bias as ``nn.Conv2d`` does."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight[0].numel())
            nn.init.uniform_(self.bias, -bound, bound)

    def extra_repr(self) -> str:
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"]
        defaults = {
            "stride": (1, 1),
            "padding": (0, 0),
            "dilation": (1, 1),
            "groups": 1,
            "offset_groups": 1,
            "modulated": False,
            "mask_scale": 2.0,
            "border": "zeros",
        }
        for name, default in defaults.items():
            if getattr(self, name, default) != default:
                parts.append(f"{name}={getattr(self, name)!r}")
        if self.bias is None:
            parts.append("bias=False")
        return ", ".join(parts)


class DeformConv2d(OffsetConv2d):
    """Deformable convolution with the branch that predicts its offsets.

    ``offset``, a convolution over the same input, predicts a (y, x) offset for every tap of every output
    position. Its weight and bias are initialized to zero, so that a new module equals ``nn.Conv2d`` with the
    same weights. With ``modulated`` (Zhu et al., 2019), the mask is ``mask_scale`` times the sigmoid of another
    prediction of the branch, which starts from 1 by default. Under autocast the branch keeps its own dtype,
    because coordinates need precision: between 16 and 32 cells, bfloat16 resolves only eighths of a cell.

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
        bias: whether the deformable convolution has a bias; the offset branch always has one.
        offset_groups: number of groups of input channels, each with its own offsets.
        modulated: whether a mask in (0, ``mask_scale``) multiplies the samples.
        mask_scale: factor on the sigmoid of the mask: 2 in the authors' code, 1 in their paper and in mmcv and
            detectron2. Use the factor that the weights were trained with.
        border: see :func:`deform_conv2d`.
        offset_dilation: dilation of the offset branch; defaults to ``dilation``. The branch is padded such that
            the offsets have the height and width of the output.

    Raises:
        ValueError: if channels are not divisible by the groups, or if no padding fits ``offset_dilation``.
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
        mask_scale: float = 2.0,
        border: str = "zeros",
        offset_dilation: int | Sequence[int] | None = None,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, offset_groups, border
        )
        self.modulated, self.mask_scale = modulated, mask_scale
        branch_dilation = self.dilation
        if offset_dilation is not None:
            branch_dilation = pair_of("offset_dilation", offset_dilation)
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
                    f"DeformConv2d: offset_dilation is {branch}; expected a value for which the padding of the "
                    f"offset branch is a non-negative integer, not {twice / 2:g} (kernel size {size}, padding "
                    f"{padding}, dilation {own})"
                )
            paddings.append(twice // 2)
        return paddings[0], paddings[1]

    def reset_parameters(self) -> None:
        """Initializes weight and bias as ``nn.Conv2d`` does, and the offset branch with zeros."""
        super().reset_parameters()
        for parameter in self.offset.parameters():
            nn.init.zeros_(parameter)

    def sampling(self, input: Tensor) -> tuple[Tensor, Tensor | None]:
        """Predicts the ``offset`` and, if modulated, the ``mask`` of :func:`deform_conv2d`.

        Args:
            input: (N, in_channels, H, W).
        """
        with library.without_autocast(input.device.type):
            return self.split(self.offset(input.to(self.offset.weight.dtype)))

    def split(self, predicted: Tensor) -> tuple[Tensor, Tensor | None]:
        """Splits the output of the branch into the two results of :meth:`sampling`."""
        if not self.modulated:
            return predicted, None
        channels = 2 * self.offset_groups * math.prod(self.kernel_size)
        return predicted[:, :channels], self.mask_scale * predicted[:, channels:].sigmoid()

    def forward(self, input: Tensor) -> Tensor:
        """Maps (N, in_channels, H, W) to (N, out_channels, H_out, W_out)."""
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
