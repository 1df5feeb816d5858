// The operators' schemas; dcn_det/ops/schemas.py holds the same text, for when there is no compiled library.
#pragma once

#define DCN_DET_SCHEMAS(X)                                                                                  \
  X("deform_conv2d(Tensor input, Tensor offset, Tensor weight, Tensor? bias, Tensor? mask, int[2] stride, " \
    "int[2] padding, int[2] dilation, str border) -> Tensor")                                               \
  X("deform_conv2d_backward(Tensor grad_output, Tensor input, Tensor offset, Tensor weight, Tensor? mask, " \
    "int[2] stride, int[2] padding, int[2] dilation, str border, bool need_input, bool need_offset, "       \
    "bool need_weight, bool need_mask) -> (Tensor grad_input, Tensor grad_offset, Tensor grad_weight, "     \
    "Tensor grad_mask)")
