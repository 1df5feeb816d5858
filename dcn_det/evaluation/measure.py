"""Measures results against ground truth of any form: one call that does what ``dcn-det evaluate`` does."""

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
        truth: annotations in COCO's format (JSON file), or a config (or its YAML file), whose test split is taken.
        results: detections in COCO's results format, as a file or a list of dicts; or a folder of result files
            of the data format.
        iou_type: overlap of boxes (``bbox``) or of masks (``segm``).
        backend: ``auto``, ``hotcoco`` or ``pycocotools``; that of the config by default.
        **overrides: settings laid over the config.

    Returns:
        COCO's 12 metrics, or those of the config's data format; shares from 0 to 1.

    Raises:
        UserError: a file is missing or malformed, or results that cannot be evaluated.
    """
    config = Config()
    if not isinstance(truth, Truth):
        config, truth = read_truth(truth, **overrides)
    entries = truth.read(Path(results), iou_type) if isinstance(results, str | Path) else list(results)
    return truth.measure(entries, evaluation_settings(config, backend), iou_type)


def evaluation_settings(config: Config, backend: Backend | None = None) -> EvaluationConfig:
    """Returns the settings of evaluation, with the number of detections that count filled in.

    Args:
        config: the settings.
        backend: used instead of that of the config.
    """
    settings = config.evaluation
    counted = settings.max_detections or max(COUNTED, config.test.max_detections)
    return settings.model_copy(update={"max_detections": counted, "backend": backend or settings.backend})


def read_truth(truth: Config | str | Path, **overrides: Any) -> tuple[Config, Truth]:
    """Reads ground truth from annotations or from the test split of a config.

    Returns:
        The config, the default one for annotations, and the ground truth.
    """
    if isinstance(truth, Config) or Path(truth).suffix in CONFIG_SUFFIXES:
        config = as_config(truth, **overrides)
        return config, Truth.of_config(config)
    return as_config(Config(), **overrides), Truth.of_file(Path(truth))
