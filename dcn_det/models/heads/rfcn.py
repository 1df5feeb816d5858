"""R-FCN's second stage (Dai et al., NeurIPS 2016), plain and with deformable pooling (Dai et al., ICCV 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from dcn_det.models import boxes as box_ops
from dcn_det.models import initialize
from dcn_det.models.heads.roi_head import RoIHead
from dcn_det.models.targets import RoISampler
from dcn_det.ops import deform_psroi_pool, psroi_pool
from dcn_det.ops.library import without_autocast
from dcn_det.precision import in_full_precision


@dataclass(frozen=True, slots=True)
class RFCNMaps:
    """Maps from which :class:`RFCNHead` pools; k is its ``pooled_size``.

    Attributes:
        scores: (B, k^2 * (num_classes + 1), H, W), position-sensitive score maps.
        deltas: (B, k^2 * 4 * D, H, W), position-sensitive maps of the D sets of box deltas.
        score_offsets: (B, k^2 * 2 * (num_classes + 1), H, W), x and y per bin and class; None without deformable
            pooling.
        delta_offsets: (B, k^2 * 2, H, W), x and y per bin; None without deformable pooling.
    """

    scores: Tensor
    deltas: Tensor
    score_offsets: Tensor | None
    delta_offsets: Tensor | None


class RFCNHead(RoIHead):
    """Pools class scores and box deltas from position-sensitive maps and averages them over the bins.

    A 1x1 convolution with ReLU reduces the channels of the feature map; further 1x1 convolutions compute separate maps
    for each of the k x k bins of a RoI, so that a RoI only requires pooling. With deformable pooling (section 2.2 of
    the paper), additional 1x1 convolutions compute maps of offsets, which are pooled in the same way without offsets:
    one offset per class and bin for the scores, one per bin for the deltas. Weights are initialized from N(0, 0.01),
    biases and offset layers with 0. Source: the authors' released code.

    Args:
        in_channels: of the feature map.
        num_classes: without background.
        stride: of the feature map, in input pixels.
        channels: of the first 1x1 convolution.
        pooling: ``average`` (plain position-sensitive pooling over whole cells), ``bilinear`` (the deformable
            operator without offsets) or ``deformable``.
        reduce_lr_mult: learning-rate multiplier of the first 1x1 convolution.
        class_agnostic: one set of box deltas for all classes and an unused one for background, as in the authors' code,
            instead of one per class.
        sampler: samples RoIs for training; with hard example mining by default.
        offset_lr_mult, **options: see :class:`dcn_det.models.heads.roi_head.RoIHead`; ``pooled_size`` is k.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        stride: int,
        *,
        channels: int = 1024,
        pooling: Literal["average", "bilinear", "deformable"] = "average",
        reduce_lr_mult: float = 3.0,
        class_agnostic: bool = True,
        sampler: RoISampler | None = None,
        offset_lr_mult: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(
            num_classes,
            class_agnostic=class_agnostic,
            sampler=sampler or RoISampler(negative_iou=(0.0, 0.5), ohem=True),
            offset_lr_mult=offset_lr_mult,
            **options,
        )
        self.spatial_scale = 1.0 / stride
        self.pooling = pooling
        self.reduce_lr_mult = reduce_lr_mult

        bins, classes = self.pooled_size**2, num_classes + 1
        self.reduce = nn.Conv2d(in_channels, channels, 1)
        self.cls_score = nn.Conv2d(channels, bins * classes, 1)
        self.bbox_pred = nn.Conv2d(channels, bins * 4 * (2 if class_agnostic else classes), 1)
        initialize.START[self.hidden_init](self.reduce)
        initialize.normal(self.cls_score, self.bbox_pred)
        self.cls_offset: nn.Conv2d | None = None
        self.bbox_offset: nn.Conv2d | None = None
        if pooling == "deformable":
            self.cls_offset = nn.Conv2d(channels, bins * 2 * classes, 1)
            self.bbox_offset = nn.Conv2d(channels, bins * 2, 1)
            initialize.zero(self.cls_offset, self.bbox_offset)

    @property
    def class_layers(self) -> dict[str, int]:
        """Layers whose outputs are grouped by class, see :func:`dcn_det.weights.start.class_layers`."""
        layers = {"cls_score": 1} if self.class_agnostic else {"cls_score": 1, "bbox_pred": 1}
        return layers if self.cls_offset is None else {**layers, "cls_offset": 1}

    def lr_multipliers(self) -> dict[str, float]:
        """Returns learning-rate multipliers other than 1, by parameter name."""
        layers = {"reduce": self.reduce_lr_mult}
        if self.pooling == "deformable":
            layers |= {"cls_offset": self.offset_lr_mult, "bbox_offset": self.offset_lr_mult}
        return {f"{layer}.{kind}": x for layer, x in layers.items() if x != 1 for kind in ("weight", "bias")}

    def _prepare(self, *features: Tensor) -> RFCNMaps:
        """Computes the maps to pool from, of one feature map (B, in_channels, H, W)."""
        (single,) = features
        x = F.relu(self.reduce(single), inplace=True)
        return RFCNMaps(
            in_full_precision(self.cls_score, x),
            in_full_precision(self.bbox_pred, x),
            None if self.cls_offset is None else self.cls_offset(x),
            None if self.bbox_offset is None else self.bbox_offset(x),
        )

    def forward(self, maps: RFCNMaps, boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Computes raw predictions.

        Args:
            maps: from :meth:`prepare`.
            boxes: (R_i, 4) for each image, half-open pixels of the network's input.

        Returns:
            logits (R, num_classes + 1), the first column background, and deltas (R, num_classes + 1, 4) or
            (R, 2, 4), in units of ``box_stds``; R is the number of boxes of all images.
        """
        rois = box_ops.to_rois(boxes)
        with without_autocast(rois.device.type):  # pooling and voting keep the precision of the maps
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
        offsets = None if offset_maps is None else self.bin_offsets(self._sample(offset_maps, rois, None))
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
