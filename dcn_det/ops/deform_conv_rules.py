"""Dispatch rules of the deformable convolution: fake kernels, autograd, autocast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dcn_det.ops import library
from dcn_det.ops.deform_conv_check import check_arguments, pair_of
from dcn_det.ops.reference import deform_conv as reference


def splits_products(tensor: Tensor) -> bool:
    """Returns whether float32 products on the tensor's device may be split into products of bfloat16 parts."""
    return tensor.is_cuda and not torch.are_deterministic_algorithms_enabled() and not _allows_tf32()


def _allows_tf32() -> bool:
    return str(torch.backends.cuda.matmul.fp32_precision) == "tf32"


# As torch.compiler.assume_constant_result does, which imports the compiler: none of PyTorch's functions that tell can
# be compiled.
_allows_tf32._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _fake(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    border: str,
    split: bool = False,
) -> Tensor:
    _check(input, offset, weight, bias, mask, stride, padding, dilation, border)
    shape = (input.shape[0], weight.shape[0], offset.shape[2], offset.shape[3])
    return reference.empty_in_layout_of(input, shape)


def _check(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    border: str,
) -> None:
    """Checks a direct call of the operator as the kernels do."""
    pairs = pair_of("stride", stride), pair_of("padding", padding), pair_of("dilation", dilation)
    check_arguments(input, offset, weight, bias, mask, *pairs, border)


def _fake_backward(
    grad_output: Tensor,
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    border: str,
    *needs: bool,
) -> tuple[Tensor, ...]:
    _check(input, offset, weight, None, mask, stride, padding, dilation, border)
    expected = (input.shape[0], weight.shape[0], *offset.shape[2:])
    if tuple(grad_output.shape) != expected or grad_output.dtype != input.dtype:
        raise ValueError(
            f"deform_conv2d_backward: grad_output is {grad_output.dtype} of shape {tuple(grad_output.shape)}; "
            f"expected {input.dtype} of shape {expected}"
        )
    return tuple(
        reference.empty_in_layout_of(like, tuple(like.shape)) if need and like is not None else input.new_empty(0)
        for like, need in zip((input, offset, weight, mask), needs)
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, offset, weight, _, mask, *ctx.options = inputs[:9]
    ctx.save_for_backward(input, offset, weight, mask)


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    input, offset, weight, mask = ctx.saved_tensors
    need_input, need_offset, need_weight, need_bias, need_mask = ctx.needs_input_grad[:5]
    needs = (need_input, need_offset, need_weight, need_mask)
    grads: list[Tensor | None] = [None] * 4
    if any(needs):
        operator = library.backward_operator("deform_conv2d", grad_output, need_input)
        split = splits_products(grad_output)
        results = operator(grad_output, input, offset, weight, mask, *ctx.options, *needs, split)
        grads = [result if need else None for result, need in zip(results, needs)]
    grad_bias = grad_output.sum((0, 2, 3)) if need_bias else None
    return (*grads[:3], grad_bias, grads[3], *[None] * (len(ctx.needs_input_grad) - 5))


OPERATOR = library.register(
    "deform_conv2d",
    plain=reference.deform_conv2d,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
    autocast=("input", "weight", "bias", "mask"),
)
library.register_backward("deform_conv2d", plain=reference.deform_conv2d_backward, fake=_fake_backward)
