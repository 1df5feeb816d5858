"""The task of each class of settings."""

from __future__ import annotations

from typing import Any

from dcn_det.config import RunConfig
from dcn_det.config.classifier import ClassificationConfig
from dcn_det.config.registry import resolve
from dcn_det.config.schema import Config
from dcn_det.config.segmentation import SegmentationConfig
from dcn_det.engine.task import Task

TASKS: dict[type[RunConfig], str] = {
    Config: "dcn_det.engine.detection:DetectionTask",
    ClassificationConfig: "dcn_det.engine.classification:ClassificationTask",
    SegmentationConfig: "dcn_det.engine.segmentation:SegmentationTask",
}
"""Place of the task, imported at its first use, by the class of its settings."""


def task_of(config: RunConfig) -> type[Task[Any]]:
    """Returns the task that a config belongs to."""
    task: type[Task[Any]] = resolve(TASKS[type(config)])
    return task
