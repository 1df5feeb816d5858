"""R-FCN's second stage (Dai et al., NeurIPS 2016), plain and with deformable pooling (Dai et al., ICCV 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from dcn_det.models import boxes as box_ops
from dcn_det.models import initialise
from dcn_det.models.heads.roi_head import RoIHead
from dcn_det.models.targets import RoISampler
from dcn_det.ops import deform_psroi_pool, psroi_pool


@dataclass(frozen=True, slots=True)
class RFCNMaps:
    """What :class:`RFCNHead` pools from; k is its ``pooled_size``.

    Attributes:
        scores: (B, k^2 * (num_classes + 1), H, W) position-sensitive score maps.
        deltas: (B, k^2 * 4 * D, H, W) likewise for the D sets of box deltas.
        score_offsets: (B, k^2 * 2 * (num_classes + 1), H, W), an x and a y for each bin and class; None unless
            the pooling is deformable.
        delta_offsets: (B, k^2 * 2, H, W), an x and a y for each bin; None likewise.
    """

    scores: Tensor
    deltas: Tensor
    score_offsets: Tensor | None
    delta_offsets: Tensor | None


class RFCNHead(RoIHead):
    """Pools class scores and box deltas from position-sensitive maps and averages them over the bins.

    A 1x1 convolution with ReLU narrows the feature map; 1x1 convolutions then give each of the k x k bins of a
    RoI maps of its own, so nothing is left to compute for a RoI but pooling. With deformable pooling (section
    2.2 of the paper) further 1x1 convolutions give maps of offsets, which are pooled in the same way without
    offsets: for the scores each class and bin has its own, for the deltas all share one for each bin. New
    layers start from N(0, 0.01), biases and the offset layers from 0. Source: the authors' released code.

    Args:
        in_channels: of the feature map.
        num_classes: without background.
        stride: of the feature map, in input pixels.
        channels: of the first 1x1 convolution.
        pooling: ``average`` (plain position-sensitive pooling over whole cells), ``bilinear`` (the deformable
            operator without offsets) or ``deformable``.
        pooled_size: bins along each axis, k.
        samples_per_bin: bilinear samples along each axis of a bin.
        offset_std: factor on the predicted offsets, which are relative to the RoI's size.
        offset_lr_mult: learning-rate multiplier of the offset layers.
        reduce_lr_mult: learning-rate multiplier of the first 1x1 convolution.
        class_agnostic: box deltas for background, which nothing uses, and for all classes together, as the
            authors have it, instead of for each class.
        sampler: chooses the RoIs to train on; the default mines hard ones.
        box_stds: the box deltas are learned divided by these.
        sigma: of the smooth L1 loss.
        loss_weight: on both losses.
        hidden_init: how the first 1x1 convolution starts: ``normal``, N(0, 0.01) as in the authors' code, or
            ``he``, for narrow heads trained from scratch.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        stride: int,
        *,
        channels: int = 1024,
        pooling: Literal["average", "bilinear", "deformable"] = "average",
        pooled_size: int = 7,
        samples_per_bin: int = 4,
        offset_std: float = 0.1,
        offset_lr_mult: float = 1.0,
        reduce_lr_mult: float = 3.0,
        class_agnostic: bool = True,
        sampler: RoISampler | None = None,
        box_stds: box_ops.Stds = (0.1, 0.1, 0.2, 0.2),
        sigma: float = 1.0,
        loss_weight: float = 1.0,
        hidden_init: Literal["normal", "he"] = "normal",
    ) -> None:
        super().__init__(
            num_classes,
            class_agnostic=class_agnostic,
            sampler=sampler or RoISampler(negative_iou=(0.0, 0.5), hard=True),
            box_stds=box_stds,
            sigma=sigma,
            loss_weight=loss_weight,
        )
        self.spatial_scale = 1.0 / stride
        self.pooling = pooling
        self.pooled_size = pooled_size
        self.samples_per_bin = samples_per_bin
        self.offset_std = offset_std
        self.offset_lr_mult = offset_lr_mult
        self.reduce_lr_mult = reduce_lr_mult

        bins, classes = pooled_size**2, num_classes + 1
        self.reduce = nn.Conv2d(in_channels, channels, 1)
        self.cls_score = nn.Conv2d(channels, bins * classes, 1)
        self.bbox_pred = nn.Conv2d(channels, bins * 4 * (2 if class_agnostic else classes), 1)
        (initialise.he if hidden_init == "he" else initialise.normal)(self.reduce)
        initialise.normal(self.cls_score, self.bbox_pred)
        self.cls_offset: nn.Conv2d | None = None
        self.bbox_offset: nn.Conv2d | None = None
        if pooling == "deformable":
            self.cls_offset = nn.Conv2d(channels, bins * 2 * classes, 1)
            self.bbox_offset = nn.Conv2d(channels, bins * 2, 1)
            initialise.zero(self.cls_offset, self.bbox_offset)

    def lr_multipliers(self) -> dict[str, float]:
        """Learning-rate multipliers other than 1, by parameter name."""
        layers = {"reduce": self.reduce_lr_mult}
        if self.pooling == "deformable":
            layers |= {"cls_offset": self.offset_lr_mult, "bbox_offset": self.offset_lr_mult}
        return {f"{layer}.{kind}": x for layer, x in layers.items() if x != 1 for kind in ("weight", "bias")}

    def prepare(self, *features: Tensor) -> RFCNMaps:
        """One map (B, in_channels, H, W) -> the maps to pool from: the work that does not depend on RoIs."""
        (single,) = features
        x = F.relu(self.reduce(single), inplace=True)
        return RFCNMaps(
            self.cls_score(x),
            self.bbox_pred(x),
            None if self.cls_offset is None else self.cls_offset(x),
            None if self.bbox_offset is None else self.bbox_offset(x),
        )

    def forward(self, maps: RFCNMaps, boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Raw predictions.

        Args:
            maps: from :meth:`prepare`.
            boxes: for each image (R_i, 4), half-open pixels of the network's input.

        Returns:
            logits (R, num_classes + 1), the first column background, and deltas (R, num_classes + 1, 4) or
            (R, 2, 4), in units of ``box_stds``; R counts the boxes of all images.
        """
        rois = box_ops.to_rois(boxes)
        logits = self._pool(maps.scores, maps.score_offsets, rois).mean(dim=(2, 3))
        deltas = self._pool(maps.deltas, maps.delta_offsets, rois).mean(dim=(2, 3))
        return logits, deltas.unflatten(1, (-1, 4))

    def _pool(self, maps: Tensor, offset_maps: Tensor | None, rois: Tensor) -> Tensor:
        if self.pooling == "average":
            return psroi_pool(
                maps,
                rois,
                spatial_scale=self.spatial_scale,
                output_dim=maps.shape[1] // self.pooled_size**2,
                group_size=self.pooled_size,
                pooled_size=self.pooled_size,
            )
        offsets = None if offset_maps is None else self._sample(offset_maps, rois, None)
        return self._sample(maps, rois, offsets)

    def _sample(self, maps: Tensor, rois: Tensor, offsets: Tensor | None) -> Tensor:
        return deform_psroi_pool(
            maps,
            rois,
            offsets,
            spatial_scale=self.spatial_scale,
            output_dim=maps.shape[1] // self.pooled_size**2,
            group_size=self.pooled_size,
            pooled_size=self.pooled_size,
            part_size=self.pooled_size,
            samples_per_bin=self.samples_per_bin,
            offset_std=self.offset_std,
        )
