// Keeps a direct call of the operator from reading outside its tensors; the public functions explain wrong
// arguments.
#pragma once

#include <optional>

#include "common/nms.h"
#include "common/tensor_ops.h"

namespace dcn_det {

inline void check_nms(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& labels) {
  STD_TORCH_CHECK(boxes.dim() == 2 && boxes.size(1) == 4, "boxes must have shape (N, 4)");
  STD_TORCH_CHECK(scores.dim() == 1 && scores.size(0) == boxes.size(0), "scores must have shape (N,)");
  STD_TORCH_CHECK(boxes.scalar_type() == ScalarType::Float || boxes.scalar_type() == ScalarType::Double,
                  "boxes must be float32 or float64");
  STD_TORCH_CHECK(scores.scalar_type() == boxes.scalar_type(), "scores must have the dtype of boxes");
  if (!labels) return;
  STD_TORCH_CHECK(labels->dim() == 1 && labels->size(0) == boxes.size(0), "labels must have shape (N,)");
  STD_TORCH_CHECK(labels->scalar_type() == ScalarType::Long, "labels must be int64");
}

}  // namespace dcn_det
