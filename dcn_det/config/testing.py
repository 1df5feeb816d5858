"""Settings of testing and evaluation, and expected results."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dcn_det.config.data import ResizeConfig
from dcn_det.config.section import (
    BatchSize,
    Fraction,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    Section,
    Text,
    at_most,
)


class BoxAverageConfig(Section):
    """Iterative bounding-box average (Gidaris and Komodakis, ICCV 2015), for two-stage detectors."""

    iterations: Annotated[Positive, at_most(100)] = 2
    """Number of passes through the head; 1 only votes."""
    prune_iou: Fraction = 0.95
    """Of boxes of a class with a larger IoU, only the best passes through the head again ..."""
    max_boxes: Positive = 1000
    """... and at most this number per image."""
    vote_iou: Fraction | None = 0.5
    """Replaces a kept box by the score-weighted mean of the candidates of its class with at least this IoU; null: no
    voting."""


class RunTestConfig(Section):
    """Keys of testing of every task."""

    batch_size: BatchSize = 1
    """Images per process and forward pass."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of most layers, independent of ``train.precision``; class scores and box deltas are always float32."""


class TestConfig(RunTestConfig):
    alternatives = (("resize", "scales"),)

    resize: ResizeConfig | None = None
    """Size of the input; default: that of training, unless ``scales`` is given."""
    scales: Annotated[tuple[ResizeConfig, ...], Field(min_length=1)] | None = None
    """Multi-scale testing: sizes at which the detector runs; candidates are merged before suppression."""
    flip: bool = False
    """Also run on the mirrored image."""
    fold: bool = True
    """Make batch norm part of the convolutions before it: faster, with results that differ by rounding."""
    score_threshold: Fraction = 1e-3
    """Minimum score (exclusive)."""
    nms: Literal["hard", "linear", "gaussian"] = "hard"
    """Drop boxes that overlap a better one (``hard``), or reduce their scores (soft-NMS, Bodla et al., ICCV 2017)."""
    nms_iou: Fraction = 0.3
    """IoU with a better box above which boxes are dropped (``hard``) or their scores reduced (``linear``)."""
    nms_sigma: PositiveFloat = 0.6
    """Parameter of ``gaussian``, which multiplies scores by exp(-IoU^2 / nms_sigma)."""
    nms_class_agnostic: bool = False
    """Whether boxes of different classes suppress each other."""
    max_detections: Positive = 100
    """Maximum per image, over all classes."""
    box_average: BoxAverageConfig | None = None
    """Null: no box averaging."""

    @model_validator(mode="after")
    def _check(self) -> TestConfig:
        if self.resize is not None and self.scales is not None:
            raise ValueError("give resize or scales, not both; remove one or set it to null")
        return self


class EvaluationConfig(Section):
    backend: Literal["auto", "hotcoco", "pycocotools"] = "auto"
    """Package that computes COCO's metrics; ``auto``: hotcoco if installed, otherwise pycocotools."""
    max_detections: Positive | None = None
    """Detections per image and class that COCO's metrics count. Null: COCO's 100, or ``test.max_detections`` if that is
    larger."""
    voc_ap: Literal["11-point", "area"] = "11-point"
    """Average precision of Pascal VOC: that of 2007 (used by the paper), or that since 2010 (``area``)."""
    coco_metrics: bool = False
    """Also compute COCO's metrics on data of a format that has others."""


class ExpectedConfig(Section):
    """An expected result of this config."""

    metric: Text
    """A metric of any data format, such as ``AP``."""
    value: float
    """As a fraction: 0.331 for a published 33.1 percent."""
    tolerance: NonNegativeFloat = 0.0
    """Maximum absolute difference."""
    split: Text | None = None
    """Test split of the value, such as ``test-dev``, ``val2017`` or ``VOC2007 test``: results on other splits are not
    compared with it. Null: any split."""
    source: Text
    """Source of the value: a table of the paper, or the measurement."""
