"""Active Convolution: :class:`ActiveConv2d`, a deformable convolution whose offsets are parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dcn_det.ops.deform_conv import OffsetConv2d, deform_conv2d


class ActiveConv2d(OffsetConv2d):
    """Convolution that learns where its taps sample: the same offsets at every position of every image.

    Source: Jeon and Kim, "Active Convolution: Learning the Shape of Convolution for Image Classification" (CVPR 2017).
    The offsets start from zero, so that a new module equals ``nn.Conv2d`` with the same weights. Three differences:

    - The authors keep the center tap in place; here all taps move.
    - The authors divide the (y, x) gradient of each tap by its length, so that a step depends on the learning rate
      alone, and keep the offsets constant in the first iterations. Here, the gradient is that of the loss. Adam
      rescales it by itself; for SGD, divide ``offset.grad`` before the step, or give the offsets a learning rate of
      their own.
    - ``offset_groups`` splits the input channels; the authors' groups split the output channels.

    Parameters are ``weight``, ``bias`` and ``offset``, of shape (2 * offset_groups * kh * kw,) with the layout of
    :func:`dcn_det.ops.deform_conv2d`'s channels, in cells of the input. At whole numbers, such as the initial zeros,
    bilinear sampling has no derivative; its right derivative is used.

    Args:
        in_channels: C of the input (N, C, H, W).
        out_channels: C of the output.
        kernel_size: an int or (y, x), as are stride, padding and dilation.
        stride: see :func:`dcn_det.ops.deform_conv2d`, as for padding and dilation.
        padding: increases the output size.
        dilation: distance between kernel taps before they move.
        groups: as in ``nn.Conv2d``.
        bias: whether the convolution has a bias.
        offset_groups: number of groups of input channels, each with its own offsets.
        border: see :func:`dcn_det.ops.deform_conv2d`.

    Raises:
        ValueError: if channels are not divisible by the groups.
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
        border: str = "zeros",
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, offset_groups, border
        )
        self.offset = nn.Parameter(torch.empty(2 * offset_groups * math.prod(self.kernel_size)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initializes weight and bias as ``nn.Conv2d`` does, and the offsets with zeros."""
        super().reset_parameters()
        nn.init.zeros_(self.offset)

    def forward(self, input: Tensor) -> Tensor:
        """Maps (N, in_channels, H, W) to (N, out_channels, H_out, W_out)."""
        size = [
            (length + 2 * padding - dilation * (taps - 1) - 1) // stride + 1
            for length, padding, dilation, taps, stride in zip(
                input.shape[-2:], self.padding, self.dilation, self.kernel_size, self.stride
            )
        ]
        offset = self.offset.view(1, -1, 1, 1).expand(len(input), -1, *size)
        return deform_conv2d(
            input, offset, self.weight, self.bias, self.stride, self.padding, self.dilation, border=self.border
        )
