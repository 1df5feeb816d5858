// Schemas of the operators; dcn_det/ops/schemas.py holds the same text, for use without a compiled library.
#pragma once

// A backward operator and its twin, whose sums do not depend on the order of threads.
#define DCN_DET_BACKWARD_SCHEMAS(X, name, schema) X(name schema) X(name "_deterministic" schema)

#define DCN_DET_SCHEMAS(X)                                                                                   \
  X("deform_conv2d(Tensor input, Tensor offset, Tensor weight, Tensor? bias, Tensor? mask, int[2] stride, "  \
    "int[2] padding, int[2] dilation, str border, bool split=False) -> Tensor")                              \
  DCN_DET_BACKWARD_SCHEMAS(                                                                                  \
      X, "deform_conv2d_backward",                                                                           \
      "(Tensor grad_output, Tensor input, Tensor offset, Tensor weight, Tensor? mask, "                      \
      "int[2] stride, int[2] padding, int[2] dilation, str border, bool need_input, bool need_offset, "      \
      "bool need_weight, bool need_mask, bool split=False) -> (Tensor grad_input, Tensor grad_offset, "      \
      "Tensor grad_weight, Tensor grad_mask)")                                                               \
  X("deform_psroi_pool(Tensor input, Tensor rois, Tensor? offset, float spatial_scale, int output_dim, int " \
    "group_size, int pooled_size, int part_size, int samples_per_bin, float offset_std) -> Tensor")          \
  DCN_DET_BACKWARD_SCHEMAS(                                                                                  \
      X, "deform_psroi_pool_backward",                                                                       \
      "(Tensor grad_output, Tensor input, Tensor rois, Tensor? offset, float "                               \
      "spatial_scale, int output_dim, int group_size, int pooled_size, int part_size, int samples_per_bin, " \
      "float offset_std, bool need_input, bool need_offset) -> (Tensor grad_input, Tensor grad_offset)")     \
  X("psroi_pool(Tensor input, Tensor rois, float spatial_scale, int output_dim, int group_size, int "        \
    "pooled_size) -> Tensor")                                                                                \
  DCN_DET_BACKWARD_SCHEMAS(X, "psroi_pool_backward",                                                         \
                           "(Tensor grad_output, Tensor rois, SymInt batch, SymInt height, SymInt width, "   \
                           "float spatial_scale, int group_size) -> Tensor")                                 \
  X("roi_align(Tensor input, Tensor rois, float spatial_scale, int pooled_size, int sampling_ratio, bool "   \
    "aligned) -> Tensor")                                                                                    \
  DCN_DET_BACKWARD_SCHEMAS(X, "roi_align_backward",                                                          \
                           "(Tensor grad_output, Tensor rois, SymInt batch, SymInt height, SymInt width, "   \
                           "float spatial_scale, int sampling_ratio, bool aligned) -> Tensor")               \
  X("roi_pool(Tensor input, Tensor rois, float spatial_scale, int pooled_size) -> (Tensor output, Tensor "   \
    "argmax)")                                                                                               \
  DCN_DET_BACKWARD_SCHEMAS(X, "roi_pool_backward",                                                           \
                           "(Tensor grad_output, Tensor rois, Tensor argmax, SymInt batch, SymInt height, "  \
                           "SymInt width) -> Tensor")                                                        \
  X("nms(Tensor boxes, Tensor scores, Tensor? labels, float iou_threshold, int? max_keep) -> Tensor")
