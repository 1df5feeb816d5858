"""Faster R-CNN's second stage with two fully connected layers, as Dai et al. (ICCV 2017) simplify it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from dcn_det.models import boxes as box_ops
from dcn_det.models import initialise
from dcn_det.models.heads.roi_head import RoIHead
from dcn_det.models.targets import RoISampler
from dcn_det.ops import deform_psroi_pool, roi_pool


class FasterRCNNHead(RoIHead):
    """Classifies proposals and refines their boxes.

    A 1x1 convolution with ReLU narrows the feature map, each RoI is pooled from it, two fully connected
    layers with ReLU follow, then class scores and box deltas. With deformable pooling (section 2.2 of the
    paper) the RoI is first pooled without offsets, and one fully connected layer turns the result into an
    offset for each bin. New layers start from N(0, 0.01), biases and the offset layer from 0.

    Args:
        in_channels: of the feature map.
        num_classes: without background.
        stride: of the feature map, in input pixels.
        channels: of the 1x1 convolution.
        pooling: ``max`` (plain RoI pooling), ``bilinear`` (the deformable operator without offsets) or
            ``deformable``.
        pooled_size: bins along each axis.
        samples_per_bin: bilinear samples along each axis of a bin.
        offset_std: factor on the predicted offsets, which are relative to the RoI's size.
        offset_lr_mult: learning-rate multiplier of the offset layer.
        hidden: width of the fully connected layers.
        class_agnostic: one set of box deltas instead of one for each class.
        sampler: draws the RoIs to train on.
        box_stds: the box deltas are learned divided by these.
        sigma: of the smooth L1 loss.
        loss_weight: on both losses.
        hidden_init: how the layers before the two outputs start: ``normal``, N(0, 0.01) as in the authors' code, or
            ``he``, for narrow heads trained from scratch.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        stride: int,
        *,
        channels: int = 256,
        pooling: Literal["max", "bilinear", "deformable"] = "max",
        pooled_size: int = 7,
        samples_per_bin: int = 4,
        offset_std: float = 0.1,
        offset_lr_mult: float = 0.01,
        hidden: int = 1024,
        class_agnostic: bool = False,
        sampler: RoISampler | None = None,
        box_stds: box_ops.Stds = (0.1, 0.1, 0.2, 0.2),
        sigma: float = 1.0,
        loss_weight: float = 1.0,
        hidden_init: Literal["normal", "he"] = "normal",
    ) -> None:
        super().__init__(
            num_classes,
            class_agnostic=class_agnostic,
            sampler=sampler or RoISampler(),
            box_stds=box_stds,
            sigma=sigma,
            loss_weight=loss_weight,
        )
        self.spatial_scale = 1.0 / stride
        self.channels = channels
        self.pooled_size = pooled_size
        self.samples_per_bin = samples_per_bin
        self.pooling = pooling
        self.offset_std = offset_std
        self.offset_lr_mult = offset_lr_mult

        pooled = channels * pooled_size**2
        self.reduce = nn.Conv2d(in_channels, channels, 1)
        self.fc1 = nn.Linear(pooled, hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.cls_score = nn.Linear(hidden, num_classes + 1)
        self.bbox_pred = nn.Linear(hidden, 4 if class_agnostic else 4 * (num_classes + 1))
        start = initialise.he if hidden_init == "he" else initialise.normal
        start(self.reduce, self.fc1, self.fc2)
        initialise.normal(self.cls_score, self.bbox_pred)
        self.offset = nn.Linear(pooled, 2 * pooled_size**2) if pooling == "deformable" else None
        if self.offset is not None:
            initialise.zero(self.offset)

    def lr_multipliers(self) -> dict[str, float]:
        """Learning-rate multipliers other than 1, by parameter name."""
        if self.offset is None or self.offset_lr_mult == 1:
            return {}
        return {"offset.weight": self.offset_lr_mult, "offset.bias": self.offset_lr_mult}

    def prepare(self, features: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, channels, H, W): the work that does not depend on RoIs."""
        return F.relu(self.reduce(features), inplace=True)

    def forward(self, maps: Tensor, boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Raw predictions.

        Args:
            maps: from :meth:`prepare`.
            boxes: for each image (R_i, 4), half-open pixels of the network's input.

        Returns:
            logits (R, num_classes + 1), the first column background, and deltas (R, num_classes + 1, 4) or
            (R, 1, 4), in units of ``box_stds``; R counts the boxes of all images.
        """
        x = self._pool(maps, box_ops.to_rois(boxes)).flatten(1)
        x = F.relu(self.fc1(x), inplace=True)
        x = F.relu(self.fc2(x), inplace=True)
        return self.cls_score(x), self.bbox_pred(x).unflatten(1, (-1, 4))

    def _pool(self, maps: Tensor, rois: Tensor) -> Tensor:
        if self.pooling == "max":
            return roi_pool(maps, rois, spatial_scale=self.spatial_scale, pooled_size=self.pooled_size)
        pooled = self._sample(maps, rois, None)
        if self.offset is None:
            return pooled
        offsets = self.offset(pooled.flatten(1)).unflatten(1, (2, self.pooled_size, self.pooled_size))
        return self._sample(maps, rois, offsets)

    def _sample(self, maps: Tensor, rois: Tensor, offsets: Tensor | None) -> Tensor:
        return deform_psroi_pool(
            maps,
            rois,
            offsets,
            spatial_scale=self.spatial_scale,
            output_dim=self.channels,
            group_size=1,
            pooled_size=self.pooled_size,
            part_size=self.pooled_size,
            sample_per_part=self.samples_per_bin,
            trans_std=self.offset_std,
        )
