"""Image classifier on a backbone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcn_det.models.backbones.residual import ResidualBackbone
from dcn_det.models.detector import Backbone, Work
from dcn_det.models.initialize import normal
from dcn_det.precision import in_full_precision
from dcn_det.structures import LabelBatch


class Classifier(nn.Module):
    """Global average pooling and a fully connected layer on the last stage of a backbone.

    Args:
        preprocess: (uint8 images, infos) -> the backbone's input.
        backbone: the backbone's input -> feature maps by name; the last one is classified.
        num_classes: number of classes.
        label_smoothing: share of the target that is spread evenly over all classes.
        zero_init_residual: start the blocks of a :class:`ResidualBackbone` as their shortcuts.
    """

    backbone: Backbone
    class_layers: ClassVar[Mapping[str, int]] = {"fc": 0}
    """Layers whose outputs are grouped by class, see :func:`dcn_det.weights.start.class_layers`."""

    def __init__(
        self,
        preprocess: nn.Module,
        backbone: Backbone,
        num_classes: int,
        *,
        label_smoothing: float = 0.0,
        zero_init_residual: bool = False,
    ) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.backbone = backbone
        self.feature = list(backbone.channels)[-1]
        self.fc = nn.Linear(backbone.channels[self.feature], num_classes)
        normal(self.fc)
        self.label_smoothing = label_smoothing
        if zero_init_residual:
            assert isinstance(backbone, ResidualBackbone)
            backbone.zero_init_residual()

    def lr_multipliers(self) -> dict[str, float]:
        """Returns learning-rate multipliers other than 1, by parameter name."""
        return {f"backbone.{name}": value for name, value in self.backbone.lr_multipliers().items()}

    def work(self, images: Tensor, rois: int = 0) -> Iterator[Work]:
        """Yields the work on images, part by part; see :meth:`dcn_det.models.detector.Detector.work`."""
        features: dict[str, Tensor] = {}
        yield "backbone", lambda: features.update(self.backbone(images))
        yield "fc", lambda: self.fc(features[self.feature].mean(dim=(2, 3)))

    @property
    def output_strides(self) -> tuple[int, ...]:
        """Stride of the map that is averaged, in input pixels."""
        return (self.backbone.strides[self.feature],)

    def scores(self, batch: LabelBatch) -> Tensor:
        """Returns the logits of each image, float32 (B, num_classes)."""
        x = self.backbone(self.preprocess(batch.images, batch.infos))[self.feature]
        return in_full_precision(self.fc, x.mean(dim=(2, 3)))

    def forward(self, batch: LabelBatch) -> dict[str, Tensor] | Tensor:
        """Computes the loss in training mode, a float32 mean over the images, and logits in evaluation mode."""
        scores = self.scores(batch)
        if not self.training:
            return scores
        return {"cls": F.cross_entropy(scores, batch.labels, label_smoothing=self.label_smoothing)}


def positions(scores: Tensor, labels: Tensor) -> Tensor:
    """Returns the number of other classes whose score is not below that of the true class.

    An image is in the top k if this is less than k. Ties and scores that are not finite count against it.

    Args:
        scores: (B, C).
        labels: int64 (B,).

    Returns:
        int64 (B,).
    """
    own = scores.gather(1, labels[:, None])
    return torch.sum(~(scores < own), dim=1) - 1
