"""The one-stage detector: preprocessing, backbone, class-aware RPN."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from dcn_det.models.anchor_head import RPNOutput
from dcn_det.models.class_aware_rpn import ClassAwareRPN
from dcn_det.models.detector import Backbone, Detector, Work
from dcn_det.models.postprocess import confident
from dcn_det.structures import Batch, Detections, ImageInfo


class OneStageDetector(Detector[RPNOutput]):
    """Classifies and refines the anchors of one feature map; the results are its candidates.

    Args:
        preprocess: (uint8 images, infos) -> the backbone's input.
        backbone: the backbone's input -> feature maps by name.
        rpn: the class-aware RPN.
        feature: name of the feature map that the RPN reads.
        score_threshold: minimum score of a candidate (exclusive).
    """

    rpn: ClassAwareRPN

    def __init__(
        self,
        preprocess: nn.Module,
        backbone: Backbone,
        rpn: ClassAwareRPN,
        *,
        feature: str = "res5",
        score_threshold: float = 1e-3,
    ) -> None:
        super().__init__(preprocess, backbone, {"rpn": rpn}, score_threshold=score_threshold)
        self.feature = feature

    def extract(self, batch: Batch) -> RPNOutput:
        """Computes everything that depends only on the images."""
        features = self.backbone(self.preprocess(batch.images, batch.infos))
        output: RPNOutput = self.rpn(features[self.feature])
        return output

    def work(self, images: Tensor, rois: int = 0) -> Iterator[Work]:
        """Yields the work on preprocessed images, part by part; see :meth:`Detector.work`."""
        features: dict[str, Tensor] = {}
        yield "backbone", lambda: features.update(self.backbone(images))
        yield "rpn", lambda: self.rpn(features[self.feature])

    @property
    def output_strides(self) -> tuple[int, ...]:
        """Strides of the feature maps, in input pixels."""
        return self.rpn.strides

    def _losses(self, features: RPNOutput, batch: Batch) -> dict[str, Tensor]:
        return self.rpn.losses([features], batch.infos, batch.targets)

    def _candidates(self, features: RPNOutput, infos: Sequence[ImageInfo]) -> list[Detections]:
        return [confident(scores, boxes, self.score_threshold) for scores, boxes in self.rpn.predict(features, infos)]
