"""Builds predictors from settings and checkpoints."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from dcn_det.config import Config, RunConfig, to_plain
from dcn_det.config.options import Options
from dcn_det.distributed import resolve_device
from dcn_det.errors import UserError
from dcn_det.inference.box_average import BoxAverage
from dcn_det.inference.predictor import Detector, Predictor, View
from dcn_det.models.detector import TwoStageDetector
from dcn_det.models.postprocess import PostProcess
from dcn_det.precision import PRECISIONS
from dcn_det.structures import Category
from dcn_det.weights.files import load_into
from dcn_det.weights.settings import describe, differences, get, laid_over, of_checkpoint

C = TypeVar("C", bound=RunConfig)
M = TypeVar("M", bound=nn.Module)


class PlacedDetector(Detector, Protocol):
    """A detector with access to its parameters, which determine its device."""

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]: ...


def build_views(config: Config) -> list[View]:
    """Returns the views of ``test.resize``, ``test.scales`` and ``test.flip``; a mirrored view follows its original."""
    sizes = config.test.scales or (config.test.resize or config.data.resize,)
    mirrored = (False, True) if config.test.flip else (False,)
    return [View(size.short_side, size.max_side, flipped) for size in sizes for flipped in mirrored]


def build_predictor(model: PlacedDetector, categories: tuple[Category, ...], config: Config) -> Predictor:
    """Builds a predictor with the test settings of a config.

    Args:
        model: a detector built from ``config``; the predictor uses its device.
        categories: categories by label.
        config: the settings.

    Raises:
        UserError: the config asks for box averaging, and the detector has one stage.
    """
    test = config.test
    average = test.box_average
    if average is not None and not isinstance(model, TwoStageDetector):
        raise UserError(f"test.box_average: '{config.model.kind}' has no second stage to run again; remove it")
    device = next(model.parameters()).device
    if test.precision == "float16" and device.type == "cpu":
        warnings.warn("test.precision: float16 is very slow on a CPU; use bfloat16", stacklevel=2)
    return Predictor(
        model,
        categories,
        build_views(config),
        device,
        PostProcess(**Options(test)(PostProcess, vote_iou=average.vote_iou if average else None)),
        BoxAverage(**Options(average)(BoxAverage)) if average else None,
        PRECISIONS[test.precision],
        box_corners=config.model.box_corners,
        fold=test.fold,
    )


def restore_model(model: M, config: RunConfig, state: Mapping[str, Any], source: Path, device: str = "auto") -> M:
    """Loads the weights of a checkpoint into a model and prepares it for testing.

    Args:
        model: built from ``config``, on the CPU.
        config: the settings.
        state, source: content of the checkpoint, and its file, for messages.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Returns:
        The model in evaluation mode on the device.

    Raises:
        UserError: the checkpoint is of a different model, or the device is not available.
    """
    where = resolve_device(device)
    load_into(model, state["model"], source=source)
    model = model.to(where).eval()
    if config.train.channels_last and where.type == "cuda":  # the layout of its fast kernels for half precision
        model = model.to(memory_format=torch.channels_last)
    return model


def with_settings_of_weights(config: C, state: Mapping[str, Any], weights: Path) -> C:
    """Returns the config with the settings that belong to the weights, with a warning about those that differed.

    Raises:
        UserError: the weights are of a different kind of model or backbone.
    """
    plain = to_plain(config)
    for key in ("model.kind", "model.backbone.kind"):
        ours, theirs = get(plain, key), get(state["config"], key)
        if ours != theirs:
            raise UserError(
                f"checkpoint '{weights}' has {key} {theirs}, the config {ours}; set {key}={theirs}, or give other "
                "weights"
            )
    belonging = of_checkpoint(state["config"])
    changed = differences(config, belonging)
    if changed:
        warnings.warn(f"using settings of '{weights}' that differ from the config: {describe(changed)}", stacklevel=2)
    return laid_over(config, belonging, f"settings of '{weights}'")
