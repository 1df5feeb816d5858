// Sizes of a RoI pooling call. The public Python functions raise the errors that users see; the checks here
// keep direct calls of an operator from accessing memory outside its tensors.
#pragma once

#include <optional>
#include <string>

#include "common/deform_psroi_pool.h"
#include "common/roi_align.h"
#include "common/roi_pool.h"
#include "common/tensor_ops.h"

namespace dcn_det {

using torch::headeronly::MemoryFormat;

// Limits sizes along an axis such that these, their squares and the cell indices of a plane fit an int.
constexpr int64_t kMaxBins = 1 << 14;

inline void check_rois(const Tensor& rois, const Tensor& features, const char* features_name) {
  check_device(rois, "rois", features, features_name);
  STD_TORCH_CHECK(rois.dim() == 2 && rois.size(1) == 5, "rois must have shape (R, 5)");
  STD_TORCH_CHECK(rois.scalar_type() == accumulate_dtype(features.scalar_type()),
                  "rois must be float64 where the features are, else float32");
}

inline int bounded(int64_t value, int64_t least, int64_t most, const char* name) {
  STD_TORCH_CHECK(value >= least && value <= most, name, " must be in [", least, ", ", most, "], got ",
                  value);
  return static_cast<int>(value);
}

inline void check_plane(int64_t height, int64_t width) {
  STD_TORCH_CHECK(height >= 0 && width >= 0 && (height == 0 || width <= INT32_MAX / height),
                  "a feature map must have less than 2^31 cells");
}

inline void check_shape(const Tensor& tensor, std::initializer_list<int64_t> shape, const char* name) {
  bool equal = tensor.dim() == static_cast<int64_t>(shape.size());
  int64_t dimension = 0;
  std::string expected;
  for (const int64_t size : shape) {
    equal = equal && tensor.size(dimension++) == size;
    expected += (expected.empty() ? "" : ", ") + std::to_string(size);
  }
  STD_TORCH_CHECK(equal, name, " must have shape (", expected, ")");
}

inline Tensor new_zeros(const Tensor& like, std::initializer_list<int64_t> shape) {
  Tensor zeros = uninitialized(like, shape);
  return torch::stable::zero_(zeros);
}

// Contiguous sums as the gradient of `like`, in its dtype and layout.
inline Tensor in_layout_of(const Tensor& like, const Tensor& sums) {
  if (sums.scalar_type() == like.scalar_type() && like.is_contiguous()) return sums;
  Tensor result = torch::stable::empty_like(like);
  return torch::stable::copy_(result, sums);
}

// Checks the output's gradient in a call with `input`.
inline void check_grad(const Tensor& grad_output, const Tensor& input, std::initializer_list<int64_t> shape) {
  check_device(grad_output, "grad_output", input, "the input");
  check_shape(grad_output, shape, "grad_output");
  STD_TORCH_CHECK(grad_output.scalar_type() == input.scalar_type(),
                  "grad_output must have the dtype of input");
}

inline PsroiSizes psroi_sizes(int64_t images, int64_t height, int64_t width, const Tensor& rois,
                              int64_t output_dim, int64_t group, int64_t pooled) {
  check_plane(height, width);
  STD_TORCH_CHECK(output_dim >= 0, "output_dim must not be negative, got ", output_dim);
  PsroiSizes sizes{};
  sizes.images = images;
  sizes.rois = rois.size(0);
  sizes.output_dim = output_dim;
  sizes.height = static_cast<int>(height);
  sizes.width = static_cast<int>(width);
  sizes.group = bounded(group, 1, kMaxBins, "group_size");
  sizes.pooled = bounded(pooled, 1, kMaxBins, "pooled_size");
  return sizes;
}

inline PsroiSizes psroi_sizes(const Tensor& input, const Tensor& rois, int64_t output_dim, int64_t group,
                              int64_t pooled) {
  STD_TORCH_CHECK(input.dim() == 4, "input must have 4 dimensions, got ", input.dim());
  check_rois(rois, input, "the input");
  const PsroiSizes sizes =
      psroi_sizes(input.size(0), input.size(2), input.size(3), rois, output_dim, group, pooled);
  STD_TORCH_CHECK(input.size(1) == sizes.input_channels(),
                  "input must have output_dim * group_size^2 = ", sizes.input_channels(), " channels, got ",
                  input.size(1));
  return sizes;
}

// The sizes of the forward call whose output has the shape of grad_output.
inline PsroiSizes psroi_sizes(const Tensor& grad_output, const Tensor& rois, int64_t images, int64_t height,
                              int64_t width, int64_t group) {
  STD_TORCH_CHECK(grad_output.dim() == 4, "grad_output must have 4 dimensions, got ", grad_output.dim());
  check_rois(rois, grad_output, "grad_output");
  const int64_t output_dim = grad_output.size(1), pooled = grad_output.size(2);
  check_shape(grad_output, {rois.size(0), output_dim, pooled, pooled}, "grad_output");
  return psroi_sizes(images, height, width, rois, output_dim, group, pooled);
}

inline DeformPsroiSizes deform_psroi_sizes(const Tensor& input, const Tensor& rois,
                                           const std::optional<Tensor>& offset, int64_t output_dim,
                                           int64_t group, int64_t pooled, int64_t part, int64_t samples) {
  DeformPsroiSizes sizes{psroi_sizes(input, rois, output_dim, group, pooled)};
  sizes.part = bounded(part, 1, kMaxBins, "part_size");
  sizes.samples = bounded(samples, 1, kMaxBins, "samples_per_bin");
  sizes.classes = 1;
  if (!offset) return sizes;
  check_device(*offset, "offset", input, "the input");
  STD_TORCH_CHECK(offset->dim() == 4 && offset->size(1) >= 2 && offset->size(1) % 2 == 0 &&
                      output_dim % (offset->size(1) / 2) == 0,
                  "offset must have 2 * K channels, K dividing output_dim");
  check_shape(*offset, {sizes.rois, offset->size(1), part, part}, "offset");
  STD_TORCH_CHECK(offset->scalar_type() == rois.scalar_type(), "offset must have the dtype of rois");
  sizes.classes = offset->size(1) / 2;
  return sizes;
}

inline RoiAlignSizes roi_align_sizes(const PsroiSizes& sizes, int64_t sampling_ratio, bool aligned) {
  return {sizes, bounded(sampling_ratio, 0, kMaxBins, "sampling_ratio"), aligned};
}

inline RoiAlignSizes roi_align_sizes(const Tensor& input, const Tensor& rois, int64_t pooled,
                                     int64_t sampling_ratio, bool aligned) {
  STD_TORCH_CHECK(input.dim() == 4, "input must have 4 dimensions, got ", input.dim());
  return roi_align_sizes(psroi_sizes(input, rois, input.size(1), 1, pooled), sampling_ratio, aligned);
}

// The sizes of the forward call whose output has the shape of grad_output.
inline RoiAlignSizes roi_align_sizes(const Tensor& grad_output, const Tensor& rois, int64_t images,
                                     int64_t height, int64_t width, int64_t sampling_ratio, bool aligned) {
  return roi_align_sizes(psroi_sizes(grad_output, rois, images, height, width, 1), sampling_ratio, aligned);
}

inline RoiPoolSizes roi_pool_sizes(int64_t images, int64_t channels, int64_t height, int64_t width,
                                   const Tensor& rois, int64_t pooled) {
  check_plane(height, width);
  RoiPoolSizes sizes{};
  sizes.images = images;
  sizes.rois = rois.size(0);
  sizes.channels = channels;
  sizes.height = static_cast<int>(height);
  sizes.width = static_cast<int>(width);
  sizes.pooled = bounded(pooled, 1, kMaxBins, "pooled_size");
  return sizes;
}

inline RoiPoolSizes roi_pool_sizes(const Tensor& input, const Tensor& rois, int64_t pooled) {
  STD_TORCH_CHECK(input.dim() == 4, "input must have 4 dimensions, got ", input.dim());
  check_rois(rois, input, "the input");
  return roi_pool_sizes(input.size(0), input.size(1), input.size(2), input.size(3), rois, pooled);
}

// The sizes of the forward call whose output has the shape of grad_output.
inline RoiPoolSizes roi_pool_sizes(const Tensor& grad_output, const Tensor& rois, const Tensor& argmax,
                                   int64_t images, int64_t height, int64_t width) {
  STD_TORCH_CHECK(grad_output.dim() == 4, "grad_output must have 4 dimensions, got ", grad_output.dim());
  check_rois(rois, grad_output, "grad_output");
  const int64_t channels = grad_output.size(1), pooled = grad_output.size(2);
  check_shape(grad_output, {rois.size(0), channels, pooled, pooled}, "grad_output");
  check_device(argmax, "argmax", grad_output, "grad_output");
  check_shape(argmax, {rois.size(0), channels, pooled, pooled}, "argmax");
  STD_TORCH_CHECK(argmax.scalar_type() == ScalarType::Int, "argmax must be int32");
  return roi_pool_sizes(images, channels, height, width, rois, pooled);
}

}  // namespace dcn_det
