"""The operators of deformable networks: public functions and modules."""

from dcn_det.ops.deform_conv import DeformConv2d, deform_conv2d
from dcn_det.ops.nms import batched_nms, nms

__all__ = [
    "DeformConv2d",
    "batched_nms",
    "deform_conv2d",
    "nms",
]
