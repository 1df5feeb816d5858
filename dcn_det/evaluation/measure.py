"""Evaluation of results against annotations or a config: the function behind ``dcn-det evaluate``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dcn_det.config import Config, as_config
from dcn_det.config.testing import EvaluationConfig
from dcn_det.evaluation.backends import COUNTED, Backend, IouType
from dcn_det.evaluation.metrics import Metrics
from dcn_det.evaluation.results import Result
from dcn_det.evaluation.truth import Truth

CONFIG_SUFFIXES = (".yaml", ".yml")


def evaluate(
    truth: Config | str | Path | Truth,
    results: str | Path | Sequence[Result],
    *,
    iou_type: IouType = "bbox",
    backend: Backend | None = None,
    **overrides: Any,
) -> Metrics:
    """Computes the metrics of detections.

    Args:
        truth: JSON file of annotations in COCO's format, or a config (or its YAML file), whose test split is used.
        results: detections in COCO's results format, as a file or a list of dicts, or a folder of result files
            of the data format.
        iou_type: IoU of boxes (``bbox``) or of masks (``segm``).
        backend: ``auto``, ``hotcoco`` or ``pycocotools``; that of the config by default.
        **overrides: settings that replace those of the config.

    Returns:
        COCO's 12 metrics, or those of the config's data format, from 0 to 1.

    Raises:
        UserError: a file is missing or malformed, or the results cannot be evaluated.
    """
    config = Config()
    if not isinstance(truth, Truth):
        config, truth = read_truth(truth, **overrides)
    entries = truth.read(Path(results), iou_type) if isinstance(results, str | Path) else list(results)
    return truth.measure(entries, evaluation_settings(config, backend), iou_type)


def evaluation_settings(config: Config, backend: Backend | None = None) -> EvaluationConfig:
    """Returns the settings of the evaluation, with ``max_detections`` and ``backend`` resolved.

    Args:
        config: the settings.
        backend: back end to use instead of that of the config.
    """
    settings = config.evaluation
    counted = settings.max_detections or max(COUNTED, config.test.max_detections)
    return settings.model_copy(update={"max_detections": counted, "backend": backend or settings.backend})


def read_truth(truth: Config | str | Path, **overrides: Any) -> tuple[Config, Truth]:
    """Reads ground truth from annotations or from the test split of a config.

    Returns:
        The config (the default one if ``truth`` is a file of annotations) and the ground truth.
    """
    if isinstance(truth, Config) or Path(truth).suffix in CONFIG_SUFFIXES:
        config = as_config(truth, **overrides)
        return config, Truth.of_config(config)
    return as_config(Config(), **overrides), Truth.of_file(Path(truth))
