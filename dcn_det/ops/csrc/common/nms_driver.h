// Non-maximum suppression, for every device: checks and casts, around the kernel of a Device.
#pragma once

#include <algorithm>

#include "common/tensor_ops.h"

namespace dcn_det {

// Device::suppress receives at least one box, contiguous tensors in the dtype of overlaps, and a limit in
// [1, N].
template <typename Device>
Tensor nms(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& labels,
           double iou_threshold, std::optional<int64_t> max_keep) {
  // Guards the memory that kernels access; the public Python functions raise the errors that users see.
  STD_TORCH_CHECK(boxes.dim() == 2 && boxes.size(1) == 4, "nms: boxes must be (N, 4)");
  const auto check_fit = [&](const Tensor& tensor, const char* name) {
    check_device(tensor, name, boxes, "the boxes");
    STD_TORCH_CHECK(tensor.dim() == 1 && tensor.size(0) == boxes.size(0), "nms: ", name, " must be (N,)");
  };
  check_fit(scores, "scores");
  if (labels.has_value()) check_fit(*labels, "labels");
  STD_TORCH_CHECK(iou_threshold >= 0 && iou_threshold <= 1, "nms: iou_threshold must be in [0, 1]");
  STD_TORCH_CHECK(max_keep.value_or(1) > 0, "nms: max_keep must be positive");
  const int64_t count = boxes.size(0);
  if (count == 0) return uninitialized(boxes, {0}, ScalarType::Long);

  const bool wide = boxes.scalar_type() == ScalarType::Double || scores.scalar_type() == ScalarType::Double;
  const auto read = [](const Tensor& tensor, ScalarType dtype) { return dense(cast(tensor, dtype)); };
  const ScalarType dtype = wide ? ScalarType::Double : ScalarType::Float;
  std::optional<Tensor> dense_labels;
  if (labels.has_value()) dense_labels = read(*labels, ScalarType::Long);
  return Device::suppress(read(boxes, dtype), read(scores, dtype), dense_labels, iou_threshold,
                          std::min(max_keep.value_or(count), count));
}

}  // namespace dcn_det
