"""Calls of operators past PyTorch's Python rules.

The rules of ``torch.library`` let compilers and modes see an operator, and take longer than a small kernel: about
three times as long as the rest of the call. In plain eager mode, where nobody looks, a call goes to the kernel at once,
with an ordinary ``torch.autograd.Function`` around it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

PLAIN_TENSORS = (Tensor, torch.nn.Parameter)
_autocast_keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU) | torch._C.DispatchKeySet(
    torch._C.DispatchKey.AutocastCUDA
)


def is_eager() -> bool:
    """Returns whether no compiler, tracer, dispatch mode or function transform has to see a call."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._functorch.maybe_current_level() is not None
        or torch._C._get_tracing_state() is not None
    )


def without_autocast_rules() -> Any:
    """Returns a context in which operators ignore autocast."""
    return torch._C._ExcludeDispatchKeyGuard(_autocast_keys)


def below_autograd(operator: Callable[..., Any]) -> Callable[..., Any]:
    """Returns ``operator``, called past its autograd rule where gradients are not recorded in plain eager mode."""

    def call(*args: Any) -> Any:
        if torch.is_grad_enabled() or not is_eager():
            return operator(*args)
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*args)

    return call


def direct(
    operator: Callable[..., Any],
    backward: Callable[..., Any],
    setup_context: Callable[..., None],
    cast: Callable[[list[Any], str, torch.dtype], None],
) -> Callable[..., Any]:
    """Returns ``operator`` with a short way to its kernel.

    Args:
        operator: Overload of an operator whose first argument is a tensor. Its own rules serve all calls that are
            not plain eager ones, with the same results.
        backward: Autograd's ``backward(ctx, *grads)``.
        setup_context: Autograd's ``setup_context(ctx, inputs, output)``.
        cast: Applies the operator's rule of autocast to a list of arguments, given device type and dtype.
    """

    def forward(ctx: Any, *args: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            output = operator(*args)
        setup_context(ctx, args, output)
        return output

    name = str(operator).split(".")[1].title().replace("_", "")
    function: Any = type(name, (torch.autograd.Function,), {})
    function.forward, function.backward = staticmethod(forward), staticmethod(backward)

    def call(*args: Any) -> Any:
        if not is_eager() or not _all_plain(args):
            return operator(*args)
        if not torch._C._is_any_autocast_enabled():
            return run(args)
        device_type = args[0].device.type
        values = list(args)
        if torch.is_autocast_enabled(device_type):
            cast(values, device_type, torch.get_autocast_dtype(device_type))
        with without_autocast_rules():
            return run(values)

    def run(args: Sequence[Any]) -> Any:
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
            return function.apply(*args)
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*args)

    return call


def _all_plain(args: Sequence[Any]) -> bool:
    return all(type(arg) in PLAIN_TENSORS for arg in args if isinstance(arg, Tensor))
