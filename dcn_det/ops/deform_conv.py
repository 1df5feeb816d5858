"""Deformable convolution: the function :func:`deform_conv2d` and the module :class:`DeformConv2d`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

from dcn_det.ops import library
from dcn_det.ops.reference import deform_conv as reference

BORDERS = ("zeros", "dcn_v1")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


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

    The arguments are those of ``torchvision.ops.deform_conv2d``, in its order. The number of groups and of offset
    groups follows from the shapes. Source: Dai et al., "Deformable Convolutional Networks" (2017), section 2.1;
    the mask: Zhu et al., "Deformable ConvNets v2" (2019), section 3.2.

    Args:
        input: (N, C, H, W), float32, float64, float16 or bfloat16.
        offset: (N, 2 * offset_groups * kh * kw, H_out, W_out), in cells of the input: channel
            ``2 * (g * kh * kw + k)`` is what is added to the y of tap k = row * kw + column for the channels of
            offset group g, the next channel is added to its x. Same dtype as the input, or float32 beside a
            half-precision input. Coordinates are computed in float32 (float64 for a float64 input) in any case.
        weight: (C_out, C / groups, kh, kw), the input's dtype.
        bias: (C_out,), the input's dtype.
        stride: of the sampling grid, an int or (y, x).
        padding: an int or (y, x); it shifts the grid and adds to the output's size.
        dilation: the distance of the kernel's taps, an int or (y, x).
        mask: (N, offset_groups * kh * kw, H_out, W_out), the input's dtype; multiplies the samples.
        border: what samples beyond the map read. ``"zeros"``: the map is surrounded by zeros, with which bilinear
            samples blend within one cell of it, as in torchvision, mmcv and DCNv2. ``"dcn_v1"``: the rule of the
            authors' released code: zero outside [0, H) x [0, W), while y in [H - 1, H) reads the last row at full
            strength and x in [W - 1, W) the last column. Weights are to be used with the rule they were trained
            with. The rules differ at and next to the border only; with zero offsets their values are equal.

    Returns:
        (N, C_out, H_out, W_out), the input's dtype, in channels-last memory where the input lies so. With zero
        offsets and no mask it is ``torch.nn.functional.conv2d``.

    Raises:
        ValueError: an argument does not fit; the message tells which, what it is and what was expected.

    Offsets that are not finite read zero and receive zero gradients. Autocast casts everything but the offsets.
    The gradient is once differentiable. It is deterministic on the CPU. On CUDA the input's gradient is summed by
    atomic additions in an order that varies; under ``torch.use_deterministic_algorithms(True)`` the slower plain
    PyTorch operator takes their place.
    """
    stride, padding, dilation = (
        _pair("stride", stride),
        _pair("padding", padding),
        _pair("dilation", dilation),
    )
    _check(input, offset, weight, bias, mask, stride, padding, dilation, border)
    return torch.ops.dcn_det.deform_conv2d(
        input, offset, weight, bias, mask, stride, padding, dilation, border
    )


class DeformConv2d(nn.Module):
    """A convolution that learns where to sample, with the branch that predicts the offsets.

    ``offset``, a convolution over the same input, predicts a (y, x) offset for every tap of every output position.
    It starts at zero with its bias, so that a new module equals ``nn.Conv2d`` with the same weights; a modulated one
    (Zhu et al., 2019) starts at half of it, as its mask is the sigmoid of a prediction that is zero. The branch and
    the offsets stay in the branch's own dtype under autocast: at 16 pixels bfloat16 tells only eighths apart.

    Parameters are ``weight``, ``bias``, ``offset.weight`` and ``offset.bias``. ``offset`` has
    ``2 * offset_groups * kh * kw`` channels, and when modulated ``offset_groups * kh * kw`` more for the mask.

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
        offset_dilation: dilation of the offset branch, that of the deformable convolution unless given. Its padding
            follows from the condition that offsets and output have the same size.

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
        for name, count in (("groups", groups), ("offset_groups", offset_groups)):
            if count < 1 or in_channels % count:
                raise ValueError(
                    f"DeformConv2d: in_channels is {in_channels}; expected a multiple of {name}, {count}"
                )
        if out_channels % groups:
            raise ValueError(
                f"DeformConv2d: out_channels is {out_channels}; expected a multiple of groups, {groups}"
            )
        _check_border(border)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size = _pair("kernel_size", kernel_size)
        self.stride, self.padding = _pair("stride", stride), _pair("padding", padding)
        self.dilation = _pair("dilation", dilation)
        self.groups, self.offset_groups = groups, offset_groups
        self.modulated, self.border = modulated, border
        branch_dilation = (
            self.dilation if offset_dilation is None else _pair("offset_dilation", offset_dilation)
        )
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *self.kernel_size))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.offset = nn.Conv2d(
            in_channels,
            (3 if modulated else 2) * offset_groups * math.prod(self.kernel_size),
            _as_tuple(self.kernel_size),
            _as_tuple(self.stride),
            _as_tuple(self._offset_padding(branch_dilation)),
            _as_tuple(branch_dilation),
        )
        self.reset_parameters()

    def _offset_padding(self, branch_dilation: list[int]) -> list[int]:
        result = []
        for size, padding, own, branch in zip(self.kernel_size, self.padding, self.dilation, branch_dilation):
            twice = 2 * padding + (branch - own) * (size - 1)
            if twice % 2 or twice < 0:
                raise ValueError(
                    f"DeformConv2d: offset_dilation is {branch}; expected one that gives offsets of the output's size "
                    f"with a whole, non-negative padding, which is {twice / 2:g} for kernel size {size}, "
                    f"padding {padding} and dilation {own}"
                )
            result.append(twice // 2)
        return result

    def reset_parameters(self) -> None:
        """Initialises the weight and bias as ``nn.Conv2d`` does, and the offset branch with zeros."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight[0].numel())
            nn.init.uniform_(self.bias, -bound, bound)
        nn.init.zeros_(self.offset.weight)
        assert self.offset.bias is not None
        nn.init.zeros_(self.offset.bias)

    def sampling(self, input: Tensor) -> tuple[Tensor, Tensor | None]:
        """Predicts the offsets and, when modulated, the mask; see :func:`deform_conv2d` for their layout.

        Args:
            input: (N, in_channels, H, W).
        """
        with torch.autocast(input.device.type, enabled=False):
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
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={_as_tuple(self.kernel_size)}"]
        defaults = {"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": 1, "offset_groups": 1}
        defaults |= {"modulated": False, "border": "zeros"}
        for name, default in defaults.items():
            value = getattr(self, name)
            if value != default:
                parts.append(f"{name}={_as_tuple(value) if isinstance(value, list) else value!r}")
        if self.bias is None:
            parts.append("bias=False")
        return ", ".join(parts)


def _as_tuple(pair: list[int]) -> tuple[int, int]:
    return pair[0], pair[1]


def _pair(name: str, value: int | Sequence[int]) -> list[int]:
    least = 0 if name == "padding" else 1
    pair = [value, value] if isinstance(value, int) else list(value)
    if len(pair) != 2 or not all(isinstance(v, int) and v >= least for v in pair):
        raise ValueError(
            f"deform_conv2d: {name} is {value!r}; expected one or two ints, each at least {least}"
        )
    return pair


def _check_border(border: str) -> None:
    if border not in BORDERS:
        raise ValueError(
            f"deform_conv2d: border is {border!r}; expected one of {', '.join(map(repr, BORDERS))}"
        )


def _check_shape(name: str, tensor: Tensor, expected: Sequence[int], meaning: str) -> None:
    if tuple(tensor.shape) != tuple(expected):
        raise ValueError(
            f"deform_conv2d: {name} has shape {tuple(tensor.shape)}; expected {tuple(expected)}, {meaning}"
        )


def _check_kinds(
    input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None
) -> None:
    """Number of dimensions, devices and dtypes."""
    for name, tensor in (("input", input), ("offset", offset), ("weight", weight), ("mask", mask)):
        if tensor is not None and tensor.dim() != 4:
            raise ValueError(f"deform_conv2d: {name} has {tensor.dim()} dimensions; expected 4")
    autocast = torch.is_autocast_enabled(input.device.type)
    for name, tensor in (
        ("input", input),
        ("offset", offset),
        ("weight", weight),
        ("bias", bias),
        ("mask", mask),
    ):
        if tensor is None:
            continue
        if tensor.device != input.device:
            raise ValueError(
                f"deform_conv2d: {name} is on {tensor.device}; expected {input.device}, as the input"
            )
        if tensor.dtype not in DTYPES:
            raise ValueError(f"deform_conv2d: {name} is {tensor.dtype}; expected a floating point dtype")
        half = input.dtype in (torch.float16, torch.bfloat16)
        if (
            tensor.dtype == input.dtype
            or autocast
            or (name == "offset" and half and tensor.dtype == torch.float32)
        ):
            continue
        raise ValueError(f"deform_conv2d: {name} is {tensor.dtype}; expected {input.dtype}, as the input")


def _check(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    border: str,
) -> None:
    _check_border(border)
    _check_kinds(input, offset, weight, bias, mask)
    channels = input.shape[1]
    out_channels, group_channels, kernel_height, kernel_width = weight.shape
    for name, tensor in (("input", input), ("weight", weight)):
        if 0 in tensor.shape[1:] or (name == "weight" and out_channels == 0):
            raise ValueError(
                f"deform_conv2d: {name} has shape {tuple(tensor.shape)}; expected no dimension of size 0"
            )
    if channels % group_channels:
        raise ValueError(
            f"deform_conv2d: input has {channels} channels; expected a multiple of {group_channels}, weight.shape[1]"
        )
    groups = channels // group_channels
    if out_channels % groups:
        raise ValueError(
            f"deform_conv2d: weight has {out_channels} output channels; expected a multiple of {groups}, the groups"
        )
    taps = kernel_height * kernel_width
    if offset.shape[1] == 0 or offset.shape[1] % (2 * taps):
        raise ValueError(
            f"deform_conv2d: offset has {offset.shape[1]} channels; expected a multiple of {2 * taps}, "
            f"2 for each tap of a {kernel_height}x{kernel_width} kernel"
        )
    offset_groups = offset.shape[1] // (2 * taps)
    if channels % offset_groups:
        raise ValueError(
            f"deform_conv2d: input has {channels} channels; expected a multiple of {offset_groups}, the offset groups"
        )
    out_size = _out_size(input.shape[2:], (kernel_height, kernel_width), stride, padding, dilation)
    meaning = "the input's batch and the output's height and width"
    _check_shape("offset", offset, (input.shape[0], offset.shape[1], *out_size), meaning)
    if mask is not None:
        _check_shape(
            "mask", mask, (input.shape[0], offset_groups * taps, *out_size), "one for each pair of offsets"
        )
    if bias is not None:
        _check_shape("bias", bias, (out_channels,), "one for each output channel")


def _out_size(
    size: Sequence[int], kernel: Sequence[int], stride: list[int], padding: list[int], dilation: list[int]
) -> tuple[int, int]:
    room = [n + 2 * p - d * (k - 1) - 1 for n, k, p, d in zip(size, kernel, padding, dilation)]
    if min(room) < 0:
        raise ValueError(
            f"deform_conv2d: input is {size[0]}x{size[1]}; expected at least the extent of a {kernel[0]}x{kernel[1]} "
            f"kernel with dilation {_as_tuple(dilation)} less twice the padding {_as_tuple(padding)}"
        )
    return room[0] // stride[0] + 1, room[1] // stride[1] + 1


def _fake(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    border: str,
) -> Tensor:
    shape = (input.shape[0], weight.shape[0], offset.shape[2], offset.shape[3])
    return reference.empty_in_layout_of(input, shape)


def _fake_backward(
    grad_output: Tensor,
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    border: str,
    need_input: bool,
    need_offset: bool,
    need_weight: bool,
    need_mask: bool,
) -> tuple[Tensor, ...]:
    needed = ((input, need_input), (offset, need_offset), (weight, need_weight), (mask, need_mask))
    return tuple(
        reference.empty_in_layout_of(like, tuple(like.shape))
        if need and like is not None
        else input.new_empty(0)
        for like, need in needed
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, offset, weight, _, mask, *ctx.options = inputs
    ctx.save_for_backward(input, offset, weight, mask)


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
    input, offset, weight, mask = ctx.saved_tensors
    need_input, need_offset, need_weight, need_bias, need_mask = ctx.needs_input_grad[:5]
    grads: list[Tensor | None] = [None] * 4
    if need_input or need_offset or need_weight or need_mask:
        # Gathered in another order at each run by the CUDA kernel, and in a fixed one by PyTorch's own operators.
        strict = input.is_cuda and need_input and torch.are_deterministic_algorithms_enabled()
        operator = reference.deform_conv2d_backward if strict else torch.ops.dcn_det.deform_conv2d_backward
        needs = (need_input, need_offset, need_weight, need_mask)
        results = operator(grad_output, input, offset, weight, mask, *ctx.options, *needs)
        grads = [result if need else None for result, need in zip(results, needs)]
    grad_bias = grad_output.sum((0, 2, 3)) if need_bias else None
    return grads[0], grads[1], grads[2], grad_bias, grads[3], None, None, None, None


library.register(
    "deform_conv2d",
    plain=reference.deform_conv2d,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
    autocast=("input", "weight", "bias", "mask"),
)
library.register(
    "deform_conv2d_backward",
    plain=reference.deform_conv2d_backward,
    fake=_fake_backward,
    backward=library.once_differentiable("deform_conv2d"),
)


@register_flop_formula(torch.ops.dcn_det.deform_conv2d)
def _flops(
    input_shape: Sequence[int],
    offset_shape: Sequence[int],
    weight_shape: Sequence[int],
    *args: Any,
    out_shape: Any = None,
    **kwargs: Any,
) -> int:
    """The products, as PyTorch counts those of a convolution; sampling is left out."""
    positions = offset_shape[0] * offset_shape[2] * offset_shape[3]
    return 2 * positions * math.prod(weight_shape)


@register_flop_formula(torch.ops.dcn_det.deform_conv2d_backward)
def _flops_backward(
    grad_shape: Sequence[int],
    input_shape: Sequence[int],
    offset_shape: Sequence[int],
    weight_shape: Sequence[int],
    mask_shape: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    border: str,
    need_input: bool,
    need_offset: bool,
    need_weight: bool,
    need_mask: bool,
    *,
    out_shape: Any = None,
    **kwargs: Any,
) -> int:
    products = (need_input or need_offset or need_mask) + need_weight
    return products * _flops(input_shape, offset_shape, weight_shape)
