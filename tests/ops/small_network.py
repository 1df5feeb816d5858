"""A small detector that uses every operator, and a program that loads it in another process."""

import sys
from typing import Any

import torch
from torch import Tensor, nn

import dcn_det.ops
from dcn_det.ops import DeformConv2d, DeformPSRoIPool, PSRoIPool, RoIPool, batched_nms, nms

POOLED = 3
CLASSES = 2
EXTENT = 64.0


class SmallNetwork(nn.Module):
    """Features, suppression of proposals, every kind of pooling, and suppression of detections."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=4, padding=1)
        self.deform = DeformConv2d(8, 8, 3, padding=1, offset_groups=2, modulated=True)
        nn.init.normal_(self.deform.offset.weight, std=0.2)
        self.maps = nn.Conv2d(8, 4 * POOLED**2, 1)
        sizes: dict[str, Any] = {"spatial_scale": 1 / 4, "pooled_size": POOLED}
        psroi = sizes | {"output_dim": 4, "group_size": POOLED}
        samples: dict[str, Any] = {"part_size": POOLED, "samples_per_bin": 2, "offset_std": 0.1}
        self.psroi_pool, self.roi_pool = PSRoIPool(**psroi), RoIPool(**sizes)
        self.deform_psroi_pool = DeformPSRoIPool(**psroi, **samples)
        self.roi_align = dcn_det.ops.RoIAlign(**sizes, sampling_ratio=2) if hasattr(dcn_det.ops, "RoIAlign") else None
        self.offset = nn.Linear(4 * POOLED**2, 2 * CLASSES * POOLED**2)
        pooled = 4 + 4 + 8 + (8 if self.roi_align else 0)
        self.head = nn.Linear(pooled * POOLED**2, CLASSES)

    def forward(self, images: Tensor, proposals: Tensor, objectness: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps images (B, 3, H, W), proposals (R, 5) and objectness (R,) to scores, boxes and kept indices."""
        features = self.deform(self.stem(images).relu()).relu()
        maps = self.maps(features)
        kept = batched_nms(proposals[:, 1:], objectness, proposals[:, 0].long(), 0.3)
        regions = proposals[kept]
        fixed = self.deform_psroi_pool(maps, regions)
        offset = self.offset(fixed.flatten(1)).unflatten(1, (2 * CLASSES, POOLED, POOLED))
        pools = [self.deform_psroi_pool(maps, regions, offset), self.psroi_pool(maps, regions)]
        pools.append(self.roi_pool(features, regions))
        if self.roi_align is not None:
            pools.append(self.roi_align(features, regions))
        scores = self.head(torch.cat(pools, 1).flatten(1))
        return scores, regions, nms(regions[:, 1:], scores[:, 0], 0.2)


def make_inputs(batch: int, proposals: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(batch * 1000 + proposals)
    corners = torch.rand(proposals, 2, generator=generator) * EXTENT * 0.7
    boxes = torch.cat([corners, corners + 4 + torch.rand(proposals, 2, generator=generator) * EXTENT * 0.4], 1)
    image = torch.arange(proposals)[:, None] % batch
    images = torch.randn(batch, 3, int(EXTENT), int(EXTENT), generator=generator)
    return images, torch.cat([image, boxes], 1), torch.rand(proposals, generator=generator)


def make_network() -> SmallNetwork:
    torch.manual_seed(0)
    return SmallNetwork()


if __name__ == "__main__":
    program, results = sys.argv[1:]
    network = torch.export.load(program).module()
    torch.save([network(*make_inputs(batch, count)) for batch, count in ((2, 20), (2, 31), (3, 9))], results)
