"""Settings of semantic segmentation."""

from __future__ import annotations

from typing import Annotated

from dcn_det.config import kinds as kinds  # registers what the defaults below name
from dcn_det.config.data import ResizeConfig
from dcn_det.config.model import DeepLabConfig, SegmenterConfig
from dcn_det.config.registry import MASKS, SEGMENTERS, OneOf
from dcn_det.config.run import RunConfig, metric_problems
from dcn_det.config.section import Text
from dcn_det.config.segmentation_data import MASK_METRICS, MaskDataConfig, VocMasksConfig
from dcn_det.config.testing import RunTestConfig
from dcn_det.config.train import TrainConfig


class SegmentationTrainConfig(TrainConfig):
    best_metric: Text = "mIoU"
    """Metric that selects ``best.pth``."""


class SegmentationTestConfig(RunTestConfig):
    resize: ResizeConfig | None = None
    """Size of the input; default: that of training."""
    fold: bool = True
    """Make batch norm part of the convolutions before it: faster, with results that differ by rounding."""


class SegmentationConfig(RunConfig):
    """All settings of a model of semantic segmentation: model, data, training and testing."""

    model: Annotated[SegmenterConfig, OneOf(SEGMENTERS)] = DeepLabConfig()
    data: Annotated[MaskDataConfig, OneOf(MASKS)] = VocMasksConfig()
    train: SegmentationTrainConfig = SegmentationTrainConfig()
    test: SegmentationTestConfig = SegmentationTestConfig()

    def problems(self) -> dict[tuple[str | int, ...], str]:
        """Returns what is wrong with values that depend on others, by their paths."""
        known = list(dict.fromkeys([*MASK_METRICS, *self.data.metrics]))
        measured = self.data.metrics if self.data.test is not None else None
        found = metric_problems(self.train.best_metric, measured, self.data.kind, self.expected, known)
        return {**found, **super().problems()}
