"""Changes to how a model computes that leave what it computes alone: recomputation, compilation, determinism."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from dcn_det.errors import UserError

STAGES = {"res2": "layer1", "res3": "layer2", "res4": "layer3", "res5": "layer4"}
"""Where residual networks keep the blocks of each stage."""

_RECOMPILES = 64
"""Graphs kept of one region: training and testing, a few shapes each until torch makes sizes symbolic."""


def recompute_stages(model: nn.Module, stages: Sequence[str]) -> None:
    """Drops the activations inside the residual blocks of some stages and computes them again in the backward pass.

    Args:
        model: its backbone holds ``layer1`` ... ``layer4``.
        stages: some of ``res2`` ... ``res5``.

    Raises:
        UserError: the backbone has no such stages.
    """
    if not stages:
        return
    network = next((m for m in model.modules() if all(hasattr(m, name) for name in STAGES.values())), None)
    if network is None:
        raise UserError("train.recompute_stages: this backbone is not made of res2 ... res5; leave it empty")
    for stage in stages:
        for block in network.get_submodule(STAGES[stage]).children():
            contexts = partial(_contexts, block)
            block.forward = partial(
                checkpoint, block.forward, use_reentrant=False, preserve_rng_state=True, context_fn=contexts
            )


def _contexts(block: nn.Module) -> tuple[contextlib.AbstractContextManager, contextlib.AbstractContextManager]:
    return contextlib.nullcontext(), _statistics_held(block)


@contextlib.contextmanager
def _statistics_held(block: nn.Module) -> Iterator[None]:
    """Batch norm has seen the batch already; counting it twice would change the running statistics."""
    norms = [m for m in block.modules() if isinstance(m, _BatchNorm) and m.training]
    statistics = [dict(norm.named_buffers()) for norm in norms]
    for norm, own in zip(norms, statistics):
        for name, buffer in own.items():
            setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        for norm, own in zip(norms, statistics):
            for name, buffer in own.items():
                setattr(norm, name, buffer)


def compile_regions(model: nn.Module, backend: str = "inductor") -> list[str]:
    """Compiles the parts of a detector whose work does not depend on the data, without graph breaks.

    Matching, sampling and suppression stay as they are: their shapes follow from the images.

    Args:
        model: its ``backbone``, ``rpn`` and ``head`` are compiled, and the head's ``prepare``.
        backend: of ``torch.compile``.

    Returns:
        Names of the compiled regions.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _RECOMPILES)
    regions = []
    for name in ("backbone", "rpn", "head"):
        part = getattr(model, name, None)
        if isinstance(part, nn.Module):
            part.compile(fullgraph=True, backend=backend)
            regions.append(name)
    head: Any = getattr(model, "head", None)
    if hasattr(head, "prepare"):
        head.prepare = torch.compile(head.prepare, fullgraph=True, backend=backend)
        regions.append("head.prepare")
    return regions


def be_deterministic() -> None:
    """From now on, operations whose result varies from run to run raise an error."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
