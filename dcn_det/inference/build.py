"""From settings to a predictor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from dcn_det.config import Config, from_plain
from dcn_det.distributed import resolve_device
from dcn_det.errors import UserError
from dcn_det.inference.box_average import BoxAverage
from dcn_det.inference.predictor import Detector, Predictor, View
from dcn_det.models.build import build_detector
from dcn_det.models.detector import TwoStageDetector
from dcn_det.models.postprocess import PostProcess
from dcn_det.precision import PRECISIONS
from dcn_det.structures import Category
from dcn_det.weights import checkpoint


class PlacedDetector(Detector, Protocol):
    """A detector whose parameters tell which device it is on."""

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]: ...


def build_views(config: Config) -> list[View]:
    """The views that ``test.resize``, ``test.scales`` and ``test.flip`` ask for, the mirrored one after each."""
    sizes = config.test.scales or (config.test.resize or config.data.resize,)
    mirrored = (False, True) if config.test.flip else (False,)
    return [View(size.short_side, size.max_side, flipped) for size in sizes for flipped in mirrored]


def build_predictor(model: PlacedDetector, categories: tuple[Category, ...], config: Config) -> Predictor:
    """A predictor with the settings of testing.

    Args:
        model: a detector built from ``config``, on the device that its parameters are on.
        categories: of the labels.
        config: the settings.

    Raises:
        UserError: the settings ask of the detector what it cannot do.
    """
    test = config.test
    average = test.box_average
    if average is not None and not isinstance(model, TwoStageDetector):
        raise UserError(f"test.box_average: '{config.model.kind}' has no second stage to run again; remove it")
    return Predictor(
        model,
        categories,
        build_views(config),
        next(model.parameters()).device,
        PostProcess(
            score_threshold=test.score_threshold,
            nms=test.nms,
            nms_iou=test.nms_iou,
            nms_sigma=test.nms_sigma,
            class_agnostic=test.nms_class_agnostic,
            max_detections=test.max_detections,
            vote_iou=average.vote_iou if average else None,
        ),
        BoxAverage(average.iterations, average.prune_iou, average.max_boxes) if average else None,
        PRECISIONS[config.train.precision],
    )


def load_predictor(path: Path, config: Config | None = None, device: str = "auto") -> Predictor:
    """Rebuilds a trained detector from its file, see :func:`restore_predictor`."""
    return restore_predictor(checkpoint.load(path), path, config, device)


def restore_predictor(
    state: Mapping[str, Any], source: Path, config: Config | None = None, device: str = "auto"
) -> Predictor:
    """Rebuilds a trained detector.

    Args:
        state: a checkpoint's content, class names among it.
        source: its file, for messages.
        config: settings to use; those in the checkpoint when not given.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        UserError: the checkpoint is of another model than ``config``, or the device is not there.
    """
    config = config or from_plain(state["config"], str(source))
    categories = checkpoint.categories_from_plain(state["categories"])
    where = resolve_device(device)
    model = build_detector(config.model, len(categories), config.test, load_backbone_weights=False)
    checkpoint.load_weights(model, state["model"], source)
    return build_predictor(model.to(where).eval(), categories, config)
