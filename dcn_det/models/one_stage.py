"""The one-stage detector: preprocessing, backbone, class-aware RPN."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dcn_det.models.anchor_head import RPNOutput
from dcn_det.models.class_aware_rpn import ClassAwareRPN
from dcn_det.models.detector import Backbone, Part, require_targets
from dcn_det.models.postprocess import PostProcess, confident
from dcn_det.structures import Batch, Detections, ImageInfo


class OneStageDetector(nn.Module):
    """Classifies and refines anchors on one feature map; what comes out are the detections.

    In training mode a call returns losses, in evaluation mode detections.

    Args:
        preprocess: (uint8 images, infos) -> the backbone's input.
        backbone: the backbone's input -> feature maps by name.
        rpn: the class-aware RPN.
        feature: name of the feature map that it reads.
        score_threshold, nms_iou, max_detections: see :class:`dcn_det.models.postprocess.PostProcess`.
    """

    backbone: Backbone

    def __init__(
        self,
        preprocess: nn.Module,
        backbone: Backbone,
        rpn: ClassAwareRPN,
        *,
        feature: str = "res5",
        score_threshold: float = 1e-3,
        nms_iou: float = 0.3,
        max_detections: int = 100,
    ) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.backbone = backbone
        self.rpn = rpn
        self.feature = feature
        self.score_threshold = score_threshold
        self.nms_iou = nms_iou
        self.max_detections = max_detections

    def lr_multipliers(self) -> dict[str, float]:
        """Learning-rate multipliers other than 1, by parameter name."""
        parts: dict[str, Part] = {"backbone": self.backbone, "rpn": self.rpn}
        return {
            f"{prefix}.{name}": value for prefix, part in parts.items() for name, value in part.lr_multipliers().items()
        }

    def forward(self, batch: Batch) -> dict[str, Tensor] | list[Detections]:
        """Losses when training, detections otherwise.

        Args:
            batch: on the model's device; ``targets`` are read only when training.

        Returns:
            Training: ``rpn_cls`` and ``rpn_box``, float32 scalars whose sum is to be minimised, each averaged
            over the images. Evaluation: for each image its detections, in pixels of the network's input.
        """
        output = self._output(batch)
        if not self.training:
            return self._detect(output, batch.infos)
        require_targets(batch)
        return self.rpn.losses([output], batch.infos, batch.targets)

    def _output(self, batch: Batch) -> RPNOutput:
        features = self.backbone(self.preprocess(batch.images, batch.infos))
        output: RPNOutput = self.rpn(features[self.feature])
        return output

    @torch.no_grad()
    def candidates(self, batch: Batch) -> list[Detections]:
        """Every box with a score above the threshold, for testing that unites several views of an image.

        Args:
            batch: on the model's device; the model is in evaluation mode.

        Returns:
            For each image its boxes before suppression, in pixels of the network's input and in no order.
        """
        return self._candidates(self._output(batch), batch.infos)

    def _candidates(self, output: RPNOutput, infos: Sequence[ImageInfo]) -> list[Detections]:
        return [confident(scores, boxes, self.score_threshold) for scores, boxes in self.rpn.predict(output, infos)]

    @torch.no_grad()
    def _detect(self, output: RPNOutput, infos: Sequence[ImageInfo]) -> list[Detections]:
        select = PostProcess(self.score_threshold, nms_iou=self.nms_iou, max_detections=self.max_detections)
        return [select(candidates) for candidates in self._candidates(output, infos)]
