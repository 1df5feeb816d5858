"""Changes to how a model computes that leave its results alone: recomputation, compilation, determinism."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import nn

from dcn_det.errors import UserError
from dcn_det.models.backbones.residual import ResidualBackbone
from dcn_det.models.heads.roi_head import RoIHead

_RECOMPILES = 64
"""Graphs kept per region: training and testing, a few shapes each until torch makes sizes symbolic."""


def recompute_stages(model: nn.Module, stages: Sequence[str]) -> None:
    """Drops the activations of some stages and computes them again in the backward pass.

    Args:
        model: a detector.
        stages: some of ``res2`` ... ``res5``; none changes nothing.

    Raises:
        UserError: the backbone has no such stages.
    """
    if not stages:
        return
    network = next((module for module in model.modules() if isinstance(module, ResidualBackbone)), None)
    if network is None:
        raise UserError("train.recompute_stages: this backbone has no stages res2 ... res5; leave it empty")
    network.recompute(stages)


def compile_regions(model: nn.Module, backend: str = "inductor") -> list[str]:
    """Compiles the parts of a detector whose work does not depend on the data, without graph breaks.

    Matching, sampling and suppression stay as they are: their shapes depend on the images. Raises torch's limit of
    compiled graphs per region where it is too low for images of many sizes.

    Args:
        model: its ``backbone``, ``rpn`` and ``head`` are compiled, as far as it has them.
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
            if isinstance(part, RoIHead):
                regions.append(f"{name}.prepare")
    return regions


def be_deterministic() -> None:
    """Makes operations whose result varies from run to run raise an error from now on."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
