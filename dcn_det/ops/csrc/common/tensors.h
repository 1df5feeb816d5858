// What the launching code of every device does with tensors.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <initializer_list>

namespace dcn_det {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Sums and coordinates are held in this type: float32 for the half-precision types.
inline ScalarType accumulate_type(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline Tensor cast(const Tensor& tensor, ScalarType type) {
  return tensor.scalar_type() == type ? tensor : torch::stable::to(tensor, type);
}

inline Tensor new_zeros(const Tensor& like, std::initializer_list<int64_t> shape, ScalarType type) {
  Tensor zeros = torch::stable::new_empty(like, shape, type);
  return torch::stable::zero_(zeros);
}

}  // namespace dcn_det
