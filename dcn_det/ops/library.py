"""Loads the compiled operators and registers their dispatch rules.

Every operator ``torch.ops.dcn_det.<name>`` has three tiers that give the same results:

* ``cuda``: CUDA kernels, in ``_C_cuda`` next to this file,
* ``cpu``: threaded, vectorized kernels, in ``_C`` next to this file,
* ``plain``: PyTorch operations, for every device without a compiled kernel.

``DCN_DET_TIER=plain`` in the environment disables the compiled libraries. A library that is missing, damaged or
from another version causes one warning, and the import succeeds. CPU kernels use the best instruction set of the
CPU; ``DCN_DET_CPU=baseline|avx2|avx512`` selects a lower one.
"""

from __future__ import annotations

import ctypes
import os
import struct
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dcn_det.ops.checks import has_autocast
from dcn_det.ops.direct import below_autograd, direct, without_autocast_rules
from dcn_det.ops.schemas import SCHEMAS

NAMESPACE = "dcn_det"
TIER_VARIABLE = "DCN_DET_TIER"
CPU_VARIABLE = "DCN_DET_CPU"
INSTRUCTION_SETS = ("baseline", "avx2", "avx512")
AUTOCAST_KEYS = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}
REBUILD = "rebuild with `python setup.py build_ext --inplace` in the checkout, or reinstall dcn_det"


@dataclass(frozen=True)
class LibraryState:
    """State of one compiled library.

    Attributes:
        path: File that was found, or None.
        loaded: Whether its kernels are registered.
        reason: Why it is not loaded; empty if it is.
    """

    path: Path | None
    loaded: bool
    reason: str


def _truncated(content: bytes) -> bool:
    """Whether an ELF file ends before its section table does, as after an interrupted copy.

    Loading such a file kills the process with a bus error, which no ``except`` can catch.
    """
    if content[:5] != b"\x7fELF\x02" or len(content) < 64:
        return False
    (section_offset,) = struct.unpack_from("<Q", content, 0x28)
    entry_size, entries = struct.unpack_from("<HH", content, 0x3A)
    return section_offset + entry_size * entries > len(content)


def _load(stem: str, folder: Path) -> LibraryState:
    """Loads ``folder/stem.*.so`` after checking its contents."""
    found = sorted(folder.glob(f"{stem}.*so"))
    if not found:
        return LibraryState(None, False, f"{folder / stem}.abi3.so does not exist")
    path = found[0]
    try:
        content = path.read_bytes()
        if _truncated(content):
            return LibraryState(path, False, f"{path} is truncated")
        if not all((name + schema).encode() in content for name, schema in SCHEMAS.items()):
            return LibraryState(path, False, f"{path} is damaged or from another version of dcn_det")
        torch.ops.load_library(str(path))
    except (OSError, RuntimeError) as error:
        return LibraryState(path, False, f"{path} cannot be loaded: {error}")
    return LibraryState(path, True, "")


def _load_all() -> dict[str, LibraryState]:
    tier = os.environ.get(TIER_VARIABLE, "")
    if tier not in ("", "plain"):
        raise ValueError(f"{TIER_VARIABLE} is {tier!r}; expected 'plain' or nothing")
    wanted = os.environ.get(CPU_VARIABLE, "")
    if wanted not in ("", *INSTRUCTION_SETS):
        raise ValueError(f"{CPU_VARIABLE} is {wanted!r}; expected one of {', '.join(INSTRUCTION_SETS)}, or nothing")
    if tier == "plain":
        unloaded = LibraryState(None, False, f"{TIER_VARIABLE}=plain in the environment")
        return {"cpu": unloaded, "cuda": unloaded}
    folder = Path(__file__).parent
    cpu = _load("_C", folder)
    if not cpu.loaded:
        _warn_plain("CPU", cpu)
    elif wanted and _instruction_set(cpu) != wanted:
        raise ValueError(f"{CPU_VARIABLE} is {wanted!r}; this CPU supports at most {_instruction_set(cpu)!r}")
    if torch.version.cuda is None:
        return {"cpu": cpu, "cuda": LibraryState(None, False, "this torch was built without CUDA")}
    cuda = _load("_C_cuda", folder)
    if not cuda.loaded and torch.cuda.is_available():
        _warn_plain("CUDA", cuda)
    return {"cpu": cpu, "cuda": cuda}


def _warn_plain(device: str, state: LibraryState) -> None:
    warnings.warn(
        f"dcn_det: {device} tensors use plain PyTorch operators, which are slow: {state.reason}; {REBUILD}",
        RuntimeWarning,
        stacklevel=2,
    )


def _instruction_set(state: LibraryState) -> str:
    if not state.loaded:
        return ""
    name = ctypes.CDLL(str(state.path)).dcn_det_instruction_set
    name.restype = ctypes.c_char_p
    return str(name().decode())


_states = _load_all()
_registry = torch.library.Library(NAMESPACE, "FRAGMENT")
if not _states["cpu"].loaded:
    for _name, _schema in SCHEMAS.items():
        _registry.define(_name + _schema)


def register(
    name: str,
    *,
    plain: Callable[..., Any],
    fake: Callable[..., Any],
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., None] | None = None,
    autocast: Sequence[str] = (),
) -> Callable[..., Any]:
    """Registers everything that an operator of :data:`SCHEMAS` needs in addition to its compiled kernels.

    All callables take the arguments of the schema, in order.

    Args:
        name: Operator, without the namespace.
        plain: Kernel of PyTorch operations; compiled kernels take precedence. It runs below autograd, where
            ``torch.autograd.grad`` does not work, so that the kernel of a backward operator must be a formula.
        fake: Returns empty tensors with the shape, dtype, device and strides of the result.
        backward: Autograd's ``backward(ctx, *grads)``.
        setup_context: Autograd's ``setup_context(ctx, inputs, output)``.
        autocast: Tensor arguments to cast to the autocast dtype on the CPU and on CUDA. The others, which hold
            coordinates, are passed unchanged.

    Returns:
        The operator; in plain eager mode, a shorter way to its kernels and its autograd rule.
    """
    qualified = f"{NAMESPACE}::{name}"
    operator: Callable[..., Any] = getattr(getattr(torch.ops, NAMESPACE), name).default
    cast = _autocast_rule(name, autocast)
    _registry.impl(name, plain, "CompositeExplicitAutograd")
    torch.library.register_fake(qualified, fake, lib=_registry)
    if backward is not None:
        torch.library.register_autograd(qualified, backward, setup_context=setup_context, lib=_registry)
    if autocast:
        for device_type, key in AUTOCAST_KEYS.items():
            _registry.impl(name, _autocast_kernel(operator, device_type, cast), key)
    return operator if backward is None or setup_context is None else direct(operator, backward, setup_context, cast)


def register_backward(name: str, *, plain: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Registers ``<name>_backward`` and its deterministic twin, which cannot be differentiated again.

    Args:
        name: Forward operator.
        plain: See :func:`register`. The twin shares it, because PyTorch's operations are deterministic.
        fake: See :func:`register`.
    """
    for suffix in ("backward", "backward_deterministic"):
        register(f"{name}_{suffix}", plain=plain, fake=fake, backward=once_differentiable(name))


def backward_operator(name: str, grad_output: torch.Tensor, scatters: bool = True) -> Callable[..., Any]:
    """Returns the backward operator of ``name``, or its twin under ``torch.use_deterministic_algorithms``.

    Args:
        name: Forward operator.
        grad_output: Gradient of the output; only its device matters, as kernels for the CPU are deterministic.
        scatters: Whether threads add to shared values; otherwise the order of sums does not vary.
    """
    strict = scatters and grad_output.is_cuda and torch.are_deterministic_algorithms_enabled()
    suffix = "backward_deterministic" if strict else "backward"
    return below_autograd(getattr(getattr(torch.ops, NAMESPACE), f"{name}_{suffix}").default)


def input_gradient(name: str) -> Callable[..., tuple[torch.Tensor | None, ...]]:
    """Returns autograd's ``backward`` of an operator in which only the input receives a gradient.

    Args:
        name: Forward operator. Its ``setup_context`` saves the tensors that ``<name>_backward`` takes after the
            output's gradient, and as ``ctx.options`` the arguments that follow them.
    """

    def backward(ctx: Any, grad_output: torch.Tensor | None, *_: Any) -> tuple[torch.Tensor | None, ...]:
        grad_input = None
        if ctx.needs_input_grad[0] and grad_output is not None:
            operator = backward_operator(name, grad_output)
            grad_input = operator(grad_output, *ctx.saved_tensors, *ctx.options)
        return grad_input, *[None] * (len(ctx.needs_input_grad) - 1)

    return backward


def _autocast_rule(name: str, cast: Sequence[str]) -> Callable[[list[Any], str, torch.dtype], None]:
    """Returns a function that casts the arguments named in ``cast`` in place, given device type and dtype."""
    arguments = getattr(getattr(torch.ops, NAMESPACE), name).default._schema.arguments
    positions = [i for i, argument in enumerate(arguments) if argument.name in cast]
    assert len(positions) == len(cast), f"{name} has no such arguments: {cast}"

    def rule(values: list[Any], device_type: str, dtype: torch.dtype) -> None:
        for i in positions:
            if i < len(values):
                values[i] = _cast(values[i], device_type, dtype)

    return rule


def _autocast_kernel(
    operator: Callable[..., Any], device_type: str, cast: Callable[[list[Any], str, torch.dtype], None]
) -> Callable[..., Any]:
    def kernel(*args: Any) -> Any:
        values = list(args)
        cast(values, device_type, torch.get_autocast_dtype(device_type))
        with without_autocast_rules():
            return operator(*values)

    return kernel


def _cast(value: Any, device_type: str, dtype: torch.dtype) -> Any:
    """Casts by autocast's own rule: floating point tensors on this device, except float64."""
    if not isinstance(value, torch.Tensor) or value.device.type != device_type:
        return value
    if not value.is_floating_point() or value.dtype == torch.float64:
        return value
    return value.to(dtype)


def without_autocast(device_type: str) -> AbstractContextManager[Any]:
    """Returns a context that disables autocast on a device; a no-op for devices without autocast."""
    if not has_autocast(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


def once_differentiable(name: str) -> Callable[..., Any]:
    """Returns the ``backward`` of a backward operator, which raises: second derivatives are not supported."""

    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(f"{name}: double backward (a gradient of the gradient) is not supported")

    return backward


def tier(name: str, device_type: str) -> str:
    """Returns the tier that serves an operator on a device.

    Args:
        name: Operator, without the namespace, for example ``"deform_conv2d"``.
        device_type: ``torch.device(...).type``, for example ``"cuda"``.

    Returns:
        ``"cuda"`` or ``"cpu"`` for a compiled kernel, ``"plain"`` for PyTorch operations.

    Raises:
        ValueError: if there is no such operator.
    """
    if name not in SCHEMAS:
        raise ValueError(f"unknown operator {name!r}; expected one of {', '.join(SCHEMAS)}")
    key = {"cpu": "CPU", "cuda": "CUDA"}.get(device_type)
    if key is not None and torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{name}", key):
        return device_type
    return "plain"


def instruction_set() -> str:
    """Returns the instruction set of the compiled CPU kernels, one of :data:`INSTRUCTION_SETS`; empty if not loaded."""
    return _instruction_set(_states["cpu"])


def status() -> dict[str, LibraryState]:
    """Returns the state of the compiled libraries by device type: ``"cpu"``, ``"cuda"``."""
    return dict(_states)
