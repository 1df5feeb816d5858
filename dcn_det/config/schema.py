"""The schema of a detector's settings: types, units, defaults and meaning.

Values are frozen and unknown keys are refused. Defaults follow the paper's recipe for ResNet-101 on COCO (Dai et al.,
ICCV 2017) and, where it gives none, the authors' released code.

Rules between keys are checked in the innermost block that contains them; rules that depend on more than the settings
(names of residual blocks, categories of a data set), where these are known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from dcn_det.config import kinds as kinds  # registers what the defaults below name
from dcn_det.config.data import CocoDataConfig, DataConfig
from dcn_det.config.model import DetectorConfig, FasterRCNNConfig
from dcn_det.config.registry import DETECTORS, FORMATS, OneOf
from dcn_det.config.run import RunConfig, metric_problems
from dcn_det.config.testing import EvaluationConfig, TestConfig


class Config(RunConfig):
    """All settings of a detector: model, data, training, testing and evaluation."""

    model: Annotated[DetectorConfig, OneOf(DETECTORS)] = FasterRCNNConfig()
    data: Annotated[DataConfig, OneOf(FORMATS)] = CocoDataConfig()
    test: TestConfig = TestConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    def problems(self) -> dict[tuple[str | int, ...], str]:
        """Returns what is wrong with values that depend on others, by their paths."""
        measured = self.data.metrics if self.data.test is not None else None
        found = metric_problems(self.train.best_metric, measured, self.data.kind, self.expected, _known_metrics())
        return {**found, **super().problems()}


def _known_metrics() -> Sequence[str]:
    """Returns the metrics of all data formats."""
    return list(dict.fromkeys(name for section in FORMATS.sections.values() for name in section.metrics))
