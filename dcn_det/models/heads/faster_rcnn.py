"""Faster R-CNN's second stage with two fully connected layers, as Dai et al. (ICCV 2017) simplify it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcn_det.models import boxes as box_ops
from dcn_det.models import initialize
from dcn_det.models.heads.roi_head import RoIHead
from dcn_det.models.targets import RoISampler
from dcn_det.ops import deform_psroi_pool, roi_align, roi_pool
from dcn_det.precision import in_full_precision

PYRAMID_SIZE, PYRAMID_LEVEL = 224, 2
"""A RoI of this side, in pixels, is pooled from the level of this number; each doubling goes one level up."""

OFFSET_LR_MULT = {"deformable": 0.01, "modulated": 1.0}
"""Learning-rate multipliers of the offset branches, by kind of pooling."""


class FasterRCNNHead(RoIHead):
    """Classifies proposals and refines their boxes.

    A 1x1 convolution with ReLU narrows the feature map, each RoI is pooled from it, two fully connected
    layers with ReLU follow, then class scores and box deltas. With deformable pooling (section 2.2 of the
    paper) the RoI is first pooled without offsets, and one fully connected layer turns the result into an
    offset for each bin. New layers start from N(0, 0.01), biases and the offset layer from 0.

    With modulated pooling (Zhu et al., "Deformable ConvNets v2" (2019), section 3.2) the branch has two further
    layers of ``hidden`` units, and its last one also gives each bin a scalar, whose sigmoid multiplies the bin in all
    channels. It starts from 1/2, in the paper and in the authors' code.

    On a feature pyramid there is no convolution, and each RoI is pooled from the level that suits its size (Lin
    et al., CVPR 2017, equation 1). Deformable pooling then has an offset branch for each level, as the authors'
    released code has it.

    Args:
        in_channels: of the feature maps.
        num_classes: without background.
        stride: of the feature map, in input pixels, or one for each level of a pyramid, finest first.
        channels: of the 1x1 convolution; None pools from the feature maps as they are.
        pooling: ``max`` (plain RoI pooling), ``align`` (RoIAlign, He et al., ICCV 2017), ``bilinear`` (the
            deformable operator without offsets), ``deformable`` or ``modulated``.
        hidden: width of the fully connected layers.
        offset_lr_mult: learning-rate multiplier of the offset branch; None: that of the papers, 0.01 for
            ``deformable`` and 1 for ``modulated``.
        class_agnostic, sampler, **options: see :class:`dcn_det.models.heads.roi_head.RoIHead`.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        stride: int | Sequence[int],
        *,
        channels: int | None = 256,
        pooling: Literal["max", "align", "bilinear", "deformable", "modulated"] = "max",
        hidden: int = 1024,
        class_agnostic: bool = False,
        sampler: RoISampler | None = None,
        offset_lr_mult: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            num_classes,
            class_agnostic=class_agnostic,
            sampler=sampler or RoISampler(),
            offset_lr_mult=OFFSET_LR_MULT.get(pooling, 1.0) if offset_lr_mult is None else offset_lr_mult,
            **options,
        )
        self.strides = (stride,) if isinstance(stride, int) else tuple(stride)
        self.channels = channels or in_channels
        self.pooling = pooling

        pooled = self.channels * self.pooled_size**2
        self.reduce = None if channels is None else nn.Conv2d(in_channels, channels, 1)
        self.fc1 = nn.Linear(pooled, hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.cls_score = nn.Linear(hidden, num_classes + 1)
        self.bbox_pred = nn.Linear(hidden, 4 if class_agnostic else 4 * (num_classes + 1))
        start = initialize.START[self.hidden_init]
        start(*([] if self.reduce is None else [self.reduce]), self.fc1, self.fc2)
        initialize.normal(self.cls_score, self.bbox_pred)
        self.offset: nn.Module | None = None
        if pooling in OFFSET_LR_MULT:
            branches = [self._offset_branch(pooled, hidden) for _ in self.strides]
            self.offset = branches[0] if len(branches) == 1 else nn.ModuleList(branches)

    def _offset_branch(self, pooled: int, hidden: int) -> nn.Module:
        bins = self.pooled_size**2
        if self.pooling == "deformable":
            layer = nn.Linear(pooled, 2 * bins)
            initialize.zero(layer)
            return layer
        first, second, last = nn.Linear(pooled, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, 3 * bins)
        initialize.START[self.hidden_init](first, second)
        initialize.zero(last)
        return nn.Sequential(first, nn.ReLU(inplace=True), second, nn.ReLU(inplace=True), last)

    @property
    def class_layers(self) -> dict[str, int]:
        """Layers whose outputs are grouped by class, see :func:`dcn_det.weights.start.class_layers`."""
        return {"cls_score": 1} if self.class_agnostic else {"cls_score": 1, "bbox_pred": 1}

    def lr_multipliers(self) -> dict[str, float]:
        """Returns learning-rate multipliers other than 1, by parameter name."""
        if self.offset is None or self.offset_lr_mult == 1:
            return {}
        return {f"offset.{name}": self.offset_lr_mult for name, _ in self.offset.named_parameters()}

    def _prepare(self, *features: Tensor) -> tuple[Tensor, ...]:
        """Maps (B, in_channels, H, W) of each level to (B, channels, H, W)."""
        if self.reduce is None:
            return features
        return tuple(F.relu(self.reduce(level), inplace=True) for level in features)

    def forward(self, maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Computes raw predictions.

        Args:
            maps: from :meth:`prepare`.
            boxes: (R_i, 4) for each image, half-open pixels of the network's input.

        Returns:
            logits (R, num_classes + 1), the first column background, and deltas (R, num_classes + 1, 4) or
            (R, 1, 4), in units of ``box_stds``; R is the number of boxes of all images.
        """
        x = self._pool(maps, box_ops.to_rois(boxes)).flatten(1)
        x = F.relu(self.fc1(x), inplace=True)
        x = F.relu(self.fc2(x), inplace=True)
        return in_full_precision(self.cls_score, x), in_full_precision(self.bbox_pred, x).unflatten(1, (-1, 4))

    def _pool(self, maps: Sequence[Tensor], rois: Tensor) -> Tensor:
        if len(maps) == 1:
            return self._pool_level(0, maps[0], rois)
        levels = pyramid_levels(rois, len(maps))
        rows = [(levels == index).nonzero()[:, 0].to(rois.device) for index in range(len(maps))]
        # Levels without a RoI are pooled, too, so that every offset branch takes part in every step.
        pooled = [self._pool_level(index, level, rois[rows[index]]) for index, level in enumerate(maps)]
        return torch.cat(pooled)[torch.cat(rows).argsort()]

    def _pool_level(self, index: int, level: Tensor, rois: Tensor) -> Tensor:
        scale = 1.0 / self.strides[index]
        if self.pooling == "max":
            return roi_pool(level, rois, spatial_scale=scale, pooled_size=self.pooled_size)
        if self.pooling == "align":
            # Unlike the other operators, this one uses half-open coordinates.
            half_open = rois + rois.new_tensor([0, 0, 0, 1, 1])
            sizes = {"pooled_size": self.pooled_size, "sampling_ratio": self.samples_per_bin}
            return roi_align(level, half_open, spatial_scale=scale, aligned=True, **sizes)
        pooled = self._sample(level, rois, scale, None)
        if self.offset is None:
            return pooled
        branch = self.offset[index] if isinstance(self.offset, nn.ModuleList) else self.offset
        predicted = branch(pooled.flatten(1)).unflatten(1, (-1, self.pooled_size, self.pooled_size))
        pooled = self._sample(level, rois, scale, self.bin_offsets(predicted[:, :2]))
        return pooled * predicted[:, 2:].sigmoid() if self.pooling == "modulated" else pooled

    def _sample(self, level: Tensor, rois: Tensor, scale: float, offsets: Tensor | None) -> Tensor:
        return deform_psroi_pool(
            level,
            rois,
            offsets,
            spatial_scale=scale,
            output_dim=self.channels,
            group_size=1,
            pooled_size=self.pooled_size,
            part_size=self.pooled_size,
            samples_per_bin=self.samples_per_bin,
            offset_std=self.offset_std,
        )


def pyramid_levels(rois: Tensor, count: int) -> Tensor:
    """Returns the pyramid level from which each RoI is pooled, by its size.

    Args:
        rois: (R, 5) with inclusive corners, from :func:`dcn_det.models.boxes.to_rois`.
        count: number of levels, with strides 4, 8, ...

    Returns:
        int64 (R,), 0 for the finest level.
    """
    if rois.is_meta:  # RoIs without sizes are distributed evenly.
        return torch.arange(len(rois), device="cpu") % count
    size = (rois[:, 3:] - rois[:, 1:3] + 1).clamp(min=1e-6)
    side = size.prod(dim=1).sqrt()
    return torch.floor(PYRAMID_LEVEL + torch.log2(side / PYRAMID_SIZE)).clamp(0, count - 1).long()
