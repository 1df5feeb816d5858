"""Operators of deformable networks: public functions and modules."""

from dcn_det.ops.active_conv import ActiveConv2d
from dcn_det.ops.deform_conv import DeformConv2d, deform_conv2d
from dcn_det.ops.deform_psroi_pool import DeformPSRoIPool, deform_psroi_pool
from dcn_det.ops.nms import batched_nms, nms
from dcn_det.ops.psroi_pool import PSRoIPool, psroi_pool
from dcn_det.ops.roi_align import RoIAlign, roi_align
from dcn_det.ops.roi_pool import RoIPool, roi_pool

__all__ = [
    "ActiveConv2d",
    "DeformConv2d",
    "DeformPSRoIPool",
    "PSRoIPool",
    "RoIAlign",
    "RoIPool",
    "batched_nms",
    "deform_conv2d",
    "deform_psroi_pool",
    "nms",
    "psroi_pool",
    "roi_align",
    "roi_pool",
]
