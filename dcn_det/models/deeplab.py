"""Semantic segmentation: DeepLab as the paper trains it, without dilated pyramid, decoder or CRF."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcn_det.config.segmentation_data import IGNORED
from dcn_det.models import initialize
from dcn_det.models.detector import Backbone, Work
from dcn_det.ops.library import without_autocast
from dcn_det.precision import in_full_precision
from dcn_det.structures import ImageInfo, MaskBatch

STRIP = 256
"""Rows of an image whose class scores are in memory together in testing."""


def upsampling_weights(cells: int, stride: int, size: int, first: int = 0) -> Tensor:
    """Returns the weights of bilinear upsampling along one axis.

    Cell j has its center at ``stride * j + (stride - 1) / 2`` and a weight that falls from 1 to 0 within ``stride``
    pixels. That is the authors' transposed convolution (kernel ``2 * stride``, cropped by ``stride / 2``): outside the
    map are zeros, so scores shrink within ``stride / 2`` pixels of the border.

    Args:
        cells: size of the map.
        stride: pixels per cell.
        size: pixels to compute.
        first: the first of them.

    Returns:
        float32 (size, cells).
    """
    pixels = torch.arange(first, first + size, dtype=torch.float32)
    centers = torch.arange(cells, dtype=torch.float32) * stride + (stride - 1) / 2
    return (1 - (pixels[:, None] - centers).abs() / stride).clamp(min=0)


def upsample(scores: Tensor, stride: int, height: int, width: int, first: int = 0) -> Tensor:
    """Upsamples the scores of an image bilinearly, see :func:`upsampling_weights`.

    Two matrix products: unlike interpolation and transposed convolution, their gradients do not depend on the order of
    threads on a GPU.

    Args:
        scores: (C, cells along y, cells along x).
        stride: pixels per cell.
        height, width: size of the result, in pixels.
        first: its first row.

    Returns:
        float32 (C, height, width).
    """
    classes, rows, columns = scores.shape
    down = upsampling_weights(rows, stride, height, first).to(scores.device)
    right = upsampling_weights(columns, stride, width).to(scores.device)
    with without_autocast(scores.device.type):
        x = (down @ scores.float()).view(classes * height, columns)
        return (x @ right.T).view(classes, height, width)


def pixel_loss(scores: Tensor, mask: Tensor, stride: int) -> Tensor:
    """Returns the cross-entropy of an image, averaged over its labelled pixels; 0 if it has none.

    Args:
        scores: (C, cells along y, cells along x).
        mask: uint8 (H, W), labels or ``IGNORED``.
        stride: pixels per cell.

    Returns:
        float32 scalar.
    """
    logits = upsample(scores, stride, *mask.shape)
    labelled = mask != IGNORED
    # F.cross_entropy of a map has no deterministic kernel on GPUs.
    own = logits.gather(0, torch.where(labelled, mask, 0).long()[None])[0]
    losses = (logits.logsumexp(dim=0) - own) * labelled
    return losses.sum() / labelled.sum().clamp(min=1)


class DeepLabHead(nn.Module):
    """Scores of classes for every cell of a feature map: 1x1 convolution, ReLU, 1x1 convolution.

    Args:
        in_channels: of the feature map.
        num_classes: including background, if that is a class.
        channels: of the first convolution.
        hidden_init: its initialization: ``normal``, N(0, 0.01), or ``he``, for narrow networks trained from scratch.
    """

    class_layers: ClassVar[Mapping[str, int]] = {"score": 0}
    """Layers whose outputs are grouped by class, see :func:`dcn_det.weights.start.class_layers`."""

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        channels: int = 1024,
        hidden_init: Literal["normal", "he"] = "normal",
    ) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(in_channels, channels, 1)
        self.score = nn.Conv2d(channels, num_classes, 1)
        initialize.START[hidden_init](self.reduce)
        initialize.normal(self.score)

    def forward(self, features: Tensor) -> Tensor:
        """Maps (B, in_channels, H, W) to float32 (B, num_classes, H, W)."""
        return in_full_precision(self.score, F.relu(self.reduce(features), inplace=True))


class DeepLab(nn.Module):
    """Classifies every pixel: backbone, :class:`DeepLabHead`, bilinear upsampling to the input.

    Source: section 4.1 of the paper; layers, multipliers and loss of the authors' released code.

    Args:
        preprocess: (uint8 images, infos) -> the backbone's input.
        backbone: the backbone's input -> feature maps by name.
        head: the scores of a feature map.
        feature: name of the feature map that the head reads.
        bias_lr_mult: learning-rate multiplier of the biases of new layers: those of the head, and of the convolutions
            that predict offsets (there, in addition to theirs).
    """

    backbone: Backbone

    def __init__(
        self,
        preprocess: nn.Module,
        backbone: Backbone,
        head: DeepLabHead,
        *,
        feature: str = "res5",
        bias_lr_mult: float = 2.0,
    ) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.backbone = backbone
        self.head = head
        self.parts = ("backbone", "head")
        self.feature = feature
        self.stride = backbone.strides[feature]
        self.bias_lr_mult = bias_lr_mult

    def lr_multipliers(self) -> dict[str, float]:
        """Returns learning-rate multipliers other than 1, by parameter name."""
        given = {f"backbone.{name}": value for name, value in self.backbone.lr_multipliers().items()}
        for name, _ in self.named_parameters():
            if name.endswith(".bias") and (name.startswith("head.") or ".offset." in name):
                given[name] = given.get(name, 1.0) * self.bias_lr_mult
        return {name: value for name, value in given.items() if value != 1}

    def scores(self, batch: MaskBatch) -> Tensor:
        """Returns the scores of every cell, float32 (B, num_classes, cells along y, cells along x)."""
        output: Tensor = self.head(self.backbone(self.preprocess(batch.images, batch.infos))[self.feature])
        return output

    def forward(self, batch: MaskBatch) -> dict[str, Tensor] | list[tuple[Tensor, Tensor]]:
        """Computes the loss in training mode, a float32 mean over the images, and labels in evaluation mode.

        Args:
            batch: on the model's device; ``labels`` are read only in training mode.
        """
        if not self.training:
            return self.labels(batch)
        if batch.labels is None:
            raise ValueError("training needs labels")
        pairs = zip(self.scores(batch), batch.labels)
        return {"pixel": torch.stack([pixel_loss(scores, mask, self.stride) for scores, mask in pairs]).mean()}

    @torch.no_grad()
    def labels(self, batch: MaskBatch) -> list[tuple[Tensor, Tensor]]:
        """Returns the most probable label of every pixel, and its probability.

        Args:
            batch: on the model's device; the model is in evaluation mode.

        Returns:
            For each image, uint8 and float32 (input height, input width).
        """
        return self.best(self.scores(batch), batch.infos)

    def best(self, scores: Tensor, infos: Sequence[ImageInfo]) -> list[tuple[Tensor, Tensor]]:
        """Upsamples scores, a strip of rows at a time, and returns the best labels; see :meth:`labels`."""
        return [self._best(each, info.input_height, info.input_width) for each, info in zip(scores, infos)]

    def _best(self, scores: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        labels = torch.empty(height, width, dtype=torch.uint8, device=scores.device)
        probabilities = torch.empty(height, width, device=scores.device)
        for first in range(0, height, STRIP):
            rows = slice(first, min(first + STRIP, height))
            logits = upsample(scores, self.stride, rows.stop - first, width, first)
            best, labels[rows] = logits.max(dim=0)
            probabilities[rows] = (best - logits.logsumexp(dim=0)).exp()
        return labels, probabilities

    def work(self, images: Tensor, rois: int = 0) -> Iterator[Work]:
        """Yields the work on images, part by part; see :meth:`dcn_det.models.detector.Detector.work`."""
        features: dict[str, Tensor] = {}
        yield "backbone", lambda: features.update(self.backbone(images))
        yield "head", lambda: self.head(features[self.feature])

    @property
    def output_strides(self) -> tuple[int, ...]:
        """Strides of the maps that are predicted from, in input pixels."""
        return (self.stride,)
