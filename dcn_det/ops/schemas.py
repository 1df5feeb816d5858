"""Schemas of the operators: the text of ``csrc/common/schemas.h``, used when no compiled library defines them.

:mod:`dcn_det.ops.library` keeps the two equal: it refuses a compiled library with other schemas.
"""

SCHEMAS: dict[str, str] = {
    "deform_conv2d": (
        "(Tensor input, Tensor offset, Tensor weight, Tensor? bias, Tensor? mask, int[2] stride, "
        "int[2] padding, int[2] dilation, str border, bool split=False) -> Tensor"
    ),
    "deform_conv2d_backward": (
        "(Tensor grad_output, Tensor input, Tensor offset, Tensor weight, Tensor? mask, "
        "int[2] stride, int[2] padding, int[2] dilation, str border, bool need_input, bool need_offset, "
        "bool need_weight, bool need_mask, bool split=False) -> (Tensor grad_input, Tensor grad_offset, "
        "Tensor grad_weight, Tensor grad_mask)"
    ),
    "deform_psroi_pool": (
        "(Tensor input, Tensor rois, Tensor? offset, float spatial_scale, int output_dim, int group_size, "
        "int pooled_size, int part_size, int samples_per_bin, float offset_std) -> Tensor"
    ),
    "deform_psroi_pool_backward": (
        "(Tensor grad_output, Tensor input, Tensor rois, Tensor? offset, float spatial_scale, int output_dim, "
        "int group_size, int pooled_size, int part_size, int samples_per_bin, float offset_std, "
        "bool need_input, bool need_offset) -> (Tensor grad_input, Tensor grad_offset)"
    ),
    "psroi_pool": (
        "(Tensor input, Tensor rois, float spatial_scale, int output_dim, int group_size, int pooled_size) -> Tensor"
    ),
    "psroi_pool_backward": (
        "(Tensor grad_output, Tensor rois, SymInt batch, SymInt height, SymInt width, float spatial_scale, "
        "int group_size) -> Tensor"
    ),
    "roi_align": (
        "(Tensor input, Tensor rois, float spatial_scale, int pooled_size, int sampling_ratio, bool aligned) -> Tensor"
    ),
    "roi_align_backward": (
        "(Tensor grad_output, Tensor rois, SymInt batch, SymInt height, SymInt width, float spatial_scale, "
        "int sampling_ratio, bool aligned) -> Tensor"
    ),
    "roi_pool": ("(Tensor input, Tensor rois, float spatial_scale, int pooled_size) -> (Tensor output, Tensor argmax)"),
    "roi_pool_backward": (
        "(Tensor grad_output, Tensor rois, Tensor argmax, SymInt batch, SymInt height, SymInt width) -> Tensor"
    ),
    "nms": "(Tensor boxes, Tensor scores, Tensor? labels, float iou_threshold, int? max_keep) -> Tensor",
}

# Backward operators with a twin, ``<name>_deterministic``, whose sums do not depend on the order of threads.
WITH_DETERMINISTIC_TWIN = (
    "deform_conv2d_backward",
    "deform_psroi_pool_backward",
    "psroi_pool_backward",
    "roi_align_backward",
    "roi_pool_backward",
)
SCHEMAS |= {f"{name}_deterministic": SCHEMAS[name] for name in WITH_DETERMINISTIC_TWIN}
