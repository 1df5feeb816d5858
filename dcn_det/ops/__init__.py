"""The operators of deformable networks: public functions and modules."""

from dcn_det.ops.deform_conv import DeformConv2d, deform_conv2d

__all__ = [
    "DeformConv2d",
    "deform_conv2d",
]
