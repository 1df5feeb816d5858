"""Settings of testing and evaluation, and the numbers a config should reach."""

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
    """How often the head scores and regresses; 1 only votes."""
    prune_iou: Fraction = 0.95
    """Of boxes of a class that overlap more, only the best goes through the head again ..."""
    max_boxes: Positive = 1000
    """... and of those at most this many an image."""
    vote_iou: Fraction | None = 0.5
    """A kept box becomes the score-weighted mean of its class's candidates that overlap it at least this much;
    null leaves it as it is."""


class TestConfig(Section):
    alternatives = (("resize", "scales"),)

    resize: ResizeConfig | None = None
    """Size of the input; as in training when neither this nor ``scales`` is given."""
    scales: Annotated[tuple[ResizeConfig, ...], Field(min_length=1)] | None = None
    """Sizes at which the whole detector runs; what it finds at each is united before suppression."""
    flip: bool = False
    """Runs on the mirrored image, too."""
    batch_size: BatchSize = 1
    score_threshold: Fraction = 1e-3
    """Boxes need more."""
    nms: Literal["hard", "linear", "gaussian"] = "hard"
    """Drop boxes that overlap a better one, or lower their scores (soft-NMS, Bodla et al., ICCV 2017)."""
    nms_iou: Fraction = 0.3
    """Boxes that overlap a better one by more are dropped, or lowered when ``linear``."""
    nms_sigma: PositiveFloat = 0.6
    """``gaussian`` multiplies scores by exp(-IoU^2 / nms_sigma)."""
    nms_class_agnostic: bool = False
    """Whether boxes of different classes suppress each other."""
    max_detections: Positive = 100
    """Of an image, all classes together."""
    box_average: BoxAverageConfig | None = None

    @model_validator(mode="after")
    def _check(self) -> TestConfig:
        if self.resize is not None and self.scales is not None:
            raise ValueError("give resize or scales, not both; remove one or set it to null")
        return self


class EvaluationConfig(Section):
    backend: Literal["auto", "hotcoco", "pycocotools"] = "auto"
    """What computes COCO's metrics; ``auto``: hotcoco when installed, else pycocotools."""
    voc_ap: Literal["11-point", "area"] = "11-point"
    """Average precision of Pascal VOC data: of 2007 (the paper) or since 2010."""


class ExpectedConfig(Section):
    """A number this config should reach."""

    metric: Text
    """A metric of any data format, such as ``AP``."""
    value: float
    """A share: 0.331 for a published 33.1 percent."""
    tolerance: NonNegativeFloat = 0.0
    """How far a measurement may be off, as a share."""
    source: Text
    """Where the number stands: the table of the paper, or the command that gave it."""
