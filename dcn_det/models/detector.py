"""Base class of all detectors, and the two-stage detector: preprocessing, backbone, proposals, head."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from dcn_det.models.postprocess import confident
from dcn_det.models.rpn import RPN, Proposals
from dcn_det.structures import Batch, Detections, ImageInfo, Target

Work = tuple[str, Callable[[], object]]
"""Name of a part of a model, and a function that does its work."""


class Part(Protocol):
    """Interface that :class:`Detector` requires of all its parts."""

    def lr_multipliers(self) -> dict[str, float]: ...


class Backbone(Part, Protocol):
    """Interface that :class:`Detector` requires of a backbone.

    An optional attribute ``size_multiple`` (int, pixels) requests images padded to multiples of it.
    """

    channels: dict[str, int]
    strides: dict[str, int]

    def __call__(self, x: Tensor) -> dict[str, Tensor]: ...


class Head(Part, Protocol):
    """Interface that :class:`TwoStageDetector` requires of a second stage; ``maps`` is the result of ``prepare``."""

    def prepare(self, *features: Tensor) -> Any: ...

    def __call__(self, maps: Any, boxes: Sequence[Tensor]) -> Any: ...

    def losses(
        self, maps: Any, proposals: Sequence[Tensor], infos: Sequence[ImageInfo], targets: Sequence[Target]
    ) -> dict[str, Tensor]: ...

    def predict(
        self, maps: Any, boxes: Sequence[Tensor], infos: Sequence[ImageInfo]
    ) -> list[tuple[Tensor, Tensor]]: ...


@dataclass(frozen=True, slots=True)
class Features:
    """Inputs of the two stages.

    Attributes:
        rpn: (B, C, H, W) feature maps of the first stage: one, or one per level of a pyramid.
        head: result of the second stage's ``prepare``.
    """

    rpn: tuple[Tensor, ...]
    head: Any


Extracted = TypeVar("Extracted")
"""Result of :meth:`Detector.extract`."""


class Detector(nn.Module, ABC, Generic[Extracted]):
    """Base class of one- and two-stage detectors.

    A call returns losses in training mode, and candidates (scored boxes before suppression) in evaluation mode.
    :class:`dcn_det.models.postprocess.PostProcess` turns candidates into detections.

    Args:
        preprocess: (uint8 images, infos) -> the backbone's input.
        backbone: the backbone's input -> feature maps by name.
        parts: the other trained parts, by attribute name.
        score_threshold: minimum score of a candidate (exclusive).
    """

    backbone: Backbone

    def __init__(
        self,
        preprocess: nn.Module,
        backbone: Backbone,
        parts: Mapping[str, Part],
        *,
        score_threshold: float,
    ) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.backbone = backbone
        for name, part in parts.items():
            setattr(self, name, part)
        self.parts = ("backbone", *parts)
        self.score_threshold = score_threshold

    def lr_multipliers(self) -> dict[str, float]:
        """Returns learning-rate multipliers other than 1, by parameter name."""
        return {
            f"{part}.{name}": value
            for part in self.parts
            for name, value in getattr(self, part).lr_multipliers().items()
        }

    @abstractmethod
    def extract(self, batch: Batch) -> Extracted:
        """Computes everything that depends only on the images."""

    def work(self, images: Tensor, rois: int) -> Iterator[Work]:
        """Yields the work on preprocessed images, part by part, without losses, suppression and selection.

        Args:
            images: float32 (B, 3, H, W), the backbone's input.
            rois: proposals per image, for detectors that have any.
        """
        yield "backbone", lambda: self.backbone(images)

    @property
    def output_strides(self) -> tuple[int, ...]:
        """Strides of the maps from which boxes are predicted, in input pixels; empty if unknown."""
        return ()

    @abstractmethod
    def _losses(self, features: Extracted, batch: Batch) -> dict[str, Tensor]: ...

    @abstractmethod
    def _candidates(self, features: Extracted, infos: Sequence[ImageInfo]) -> list[Detections]: ...

    def forward(self, batch: Batch) -> dict[str, Tensor] | list[Detections]:
        """Computes losses in training mode, candidates in evaluation mode.

        Args:
            batch: on the model's device; ``targets`` are read only in training mode.

        Returns:
            Training: float32 scalars by name (``rpn_cls``, ``rpn_box`` and, for two-stage detectors, ``head_cls``
            and ``head_box``), each averaged over the images; their sum is minimized. Evaluation: see
            :meth:`candidates`.
        """
        if not self.training:
            return self.candidates(batch)
        features = self.extract(batch)
        if len(batch.targets) != len(batch.infos):
            raise ValueError(f"training needs a target for each of {len(batch.infos)} images, got {len(batch.targets)}")
        return self._losses(features, batch)

    @torch.no_grad()
    def candidates(self, batch: Batch) -> list[Detections]:
        """Finds all boxes with a score above the threshold.

        Args:
            batch: on the model's device; the model is in evaluation mode.

        Returns:
            Boxes of each image before suppression, in pixels of the network's input, in arbitrary order.
        """
        return self._candidates(self.extract(batch), batch.infos)


class TwoStageDetector(Detector[Features]):
    """Proposes boxes from a feature map, then classifies and refines them with another.

    The steps can be called separately, for example to refine boxes more than once::

        features = model.extract(batch)
        proposals = model.propose(features, batch.infos)
        results = model.head.predict(features.head, [p.boxes for p in proposals], batch.infos)

    Args:
        preprocess: (uint8 images, infos) -> the backbone's input.
        backbone: the backbone's input -> feature maps by name.
        rpn: first stage.
        head: second stage.
        rpn_features, head_features: names of the feature maps that each stage reads, in order of levels.
        score_threshold: minimum score of a candidate (exclusive).
    """

    rpn: RPN
    head: Head

    def __init__(
        self,
        preprocess: nn.Module,
        backbone: Backbone,
        rpn: RPN,
        head: Head,
        *,
        rpn_features: Sequence[str] = ("res4",),
        head_features: Sequence[str] = ("res5",),
        score_threshold: float = 1e-3,
    ) -> None:
        super().__init__(preprocess, backbone, {"rpn": rpn, "head": head}, score_threshold=score_threshold)
        self.rpn_features = tuple(rpn_features)
        self.head_features = tuple(head_features)

    def extract(self, batch: Batch) -> Features:
        """Computes everything that depends only on the images."""
        features = self.backbone(self.preprocess(batch.images, batch.infos))
        return Features(
            tuple(features[name] for name in self.rpn_features),
            self.head.prepare(*(features[name] for name in self.head_features)),
        )

    def work(self, images: Tensor, rois: int) -> Iterator[Work]:
        """Yields the work on preprocessed images, part by part; see :meth:`Detector.work`."""
        features: dict[str, Tensor] = {}
        yield "backbone", lambda: features.update(self.backbone(images))
        yield "rpn", lambda: [self.rpn(features[name]) for name in self.rpn_features]

        def second_stage() -> None:
            boxes = [images.new_empty(rois, 4) for _ in images]
            self.head(self.head.prepare(*(features[name] for name in self.head_features)), boxes)

        yield "head", second_stage

    @property
    def output_strides(self) -> tuple[int, ...]:
        """Strides of the maps that the second stage reads, in input pixels."""
        return tuple(self.backbone.strides[name] for name in self.head_features)

    def propose(self, features: Features, infos: Sequence[ImageInfo]) -> list[Proposals]:
        """Returns the proposals of each image, in pixels of the network's input."""
        return self.rpn.proposals([self.rpn(level) for level in features.rpn], infos)

    def _losses(self, features: Features, batch: Batch) -> dict[str, Tensor]:
        outputs = [self.rpn(level) for level in features.rpn]
        proposals = [each.boxes for each in self.rpn.proposals(outputs, batch.infos)]
        return {
            **self.rpn.losses(outputs, batch.infos, batch.targets),
            **self.head.losses(features.head, proposals, batch.infos, batch.targets),
        }

    def _candidates(self, features: Features, infos: Sequence[ImageInfo]) -> list[Detections]:
        proposals = [each.boxes for each in self.propose(features, infos)]
        return [
            confident(scores, boxes, self.score_threshold)
            for scores, boxes in self.head.predict(features.head, proposals, infos)
        ]
