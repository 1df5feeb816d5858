"""Runs the operators on every tier: compiled for the CPU, compiled for CUDA, and plain PyTorch."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dcn_det.ops import library

TIERS = ["cpu", "plain", pytest.param("cuda", marks=pytest.mark.cuda)]

BAD_ROIS = torch.tensor(
    [
        [0, float("nan"), 0, 60, 60],
        [0, 0, 0, float("inf"), 60],
        [0, 0, float("-inf"), 60, 60],
        [0, 1e30, 1e30, 2e30, 2e30],
        [0, -2e30, -2e30, -1e30, -1e30],
        [0, -1e9, -1e9, -5e8, -5e8],
        [0, 5000, 5000, 6000, 6000],
    ]
)


PUBLIC_MODULES = {"deform_conv2d": "deform_conv"}
RULES_MODULES = {"deform_conv2d": "deform_conv_rules"}


def module_of(name: str, modules: dict[str, str] = PUBLIC_MODULES):
    """Returns the module of an operator; the package attribute of that name is the function."""
    return importlib.import_module(f"dcn_det.ops.{modules.get(name, name)}")


def plain_operator(name: str) -> Callable:
    """Returns the plain kernels under the operator's dispatch rules, whichever tier serves the CPU."""
    module = module_of(name, RULES_MODULES)
    forward = getattr(module.reference, name)
    if not hasattr(module, "_backward"):
        return forward

    class Plain(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *args):
            output = forward(*args)
            module._setup_context(ctx, args, output)
            return output

        @staticmethod
        def backward(ctx, *grads):
            return module._backward(ctx, *grads)

    return Plain.apply


def plain_backward(name: str, *_: object) -> Callable:
    """Replaces :func:`library.backward_operator`."""
    return getattr(module_of(name, RULES_MODULES).reference, f"{name}_backward")


def use_tier(name: str, tier: str, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Makes an operator's public function run on a tier; returns the device for its tensors."""
    if tier == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if tier == "plain":
        monkeypatch.setattr(module_of(name), "OPERATOR", plain_operator(name))
        monkeypatch.setattr(library, "backward_operator", plain_backward)
        return torch.device("cpu")
    if library.tier(name, tier) != tier:
        pytest.skip(f"no compiled {tier} kernel: {library.status()[tier].reason}")
    return torch.device(tier)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def random_rois(count: int, images: int, height: float, width: float, seed: int = 0) -> Tensor:
    """Returns float64 regions in images of this size, some partly outside, with fractional corners."""
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(count, 4, generator=generator, dtype=torch.float64)
    size = torch.tensor([width, height], dtype=torch.float64)
    start = (uniform[:, :2] * 1.2 - 0.2) * size
    end = start + (0.05 + 0.8 * uniform[:, 2:]) * size
    image = torch.arange(count, dtype=torch.float64)[:, None] % images
    return torch.cat([image, start, end], 1)


def pooling_golden(path: Path) -> tuple[dict[str, Any], dict, Tensor, dict[str, Tensor]]:
    """Returns tensors, options, output gradient and expected results of a golden, under this package's names."""
    data = np.load(path)
    arrays = {name: torch.from_numpy(data[name]) for name in data if name != "meta"}
    options = json.loads(str(data["meta"]))
    settings = {
        name: options[name] for name in ("spatial_scale", "output_dim", "group_size", "pooled_size", "part_size")
    }
    settings |= {"samples_per_bin": options["sample_per_part"], "offset_std": options["trans_std"]}
    tensors = {"input": arrays["input"], "rois": arrays["rois"], "offset": arrays.get("trans")}
    expected = {"output": arrays["output"], "input": arrays["grad_input"]}
    if "grad_trans" in arrays:
        expected["offset"] = arrays["grad_trans"]
    return tensors, settings, arrays["grad_output"], expected


def gradients(run: Callable, leaves: dict[str, Tensor | None], grad: Tensor | None = None) -> dict[str, Tensor]:
    """Returns the output of ``run(**leaves)`` and the gradients of all leaves, on the CPU."""
    given = {name: leaf.detach().requires_grad_() for name, leaf in leaves.items() if leaf is not None}
    output = run(**given)
    if grad is None:
        grad = random(*output.shape, seed=99)
    found = torch.autograd.grad(output, list(given.values()), grad.to(output))
    return {"output": output.detach().cpu()} | {name: g.cpu() for name, g in zip(given, found)}


def assert_near(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Asserts that all errors are at most ``tolerance`` times the largest value."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].shape == value.shape, name
        if value.numel() == 0:
            continue
        error = (found[name].double() - value.double()).abs().max() / value.abs().max().clamp(min=1e-30)
        assert error <= tolerance, f"{name}: {error:.2e} of the largest value"
