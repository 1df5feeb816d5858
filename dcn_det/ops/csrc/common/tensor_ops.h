// Additions to the stable ABI: operators called by name, layouts, and dispatch by dtype.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <array>
#include <optional>
#include <string>
#include <type_traits>

namespace dcn_det {

using torch::headeronly::IntHeaderOnlyArrayRef;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename... Args>
Tensor call_operator(const char* name, const char* overload, const Args&... args) {
  std::array<StableIValue, sizeof...(Args)> stack{torch::stable::detail::from(args)...};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, overload, stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// torch::stable has this function as well, but not in all supported versions.
inline Tensor permuted(const Tensor& self, IntHeaderOnlyArrayRef order) {
  return call_operator("aten::permute", "", self, order);
}

// PyTorch's worker threads do not know that the caller runs below autograd: they would record operations on
// tensors that require gradients.
inline Tensor detached(const Tensor& self) { return call_operator("aten::detach", "", self); }

inline bool on_same_device(const Tensor& a, const Tensor& b) {
  return a.is_cpu() == b.is_cpu() && a.is_cuda() == b.is_cuda() &&
         a.get_device_index() == b.get_device_index();
}

inline std::string device_of(const Tensor& tensor) {
  if (tensor.is_cpu()) return "cpu";
  return tensor.is_cuda() ? "cuda:" + std::to_string(tensor.get_device_index()) : "another device";
}

// Kernels read every tensor through pointers of the device that the first one is on.
inline void check_device(const Tensor& tensor, const char* name, const Tensor& first,
                         const char* first_name) {
  STD_TORCH_CHECK(on_same_device(tensor, first), name, " is on ", device_of(tensor), "; expected ",
                  device_of(first), ", like ", first_name);
}

inline Tensor narrowed(Tensor self, int64_t dim, int64_t start, int64_t length) {
  return torch::stable::narrow(self, dim, start, length);
}

// (N, C, H, W) -> dense (N, H, W, C); a view if memory already has this layout.
template <typename Device>
Tensor to_channels_last(const Tensor& self) {
  return Device::dense_copy(permuted(self, {0, 2, 3, 1}));
}

// Whether memory is (N, H, W, C) and not also (N, C, H, W), as is possible for trivial sizes.
inline bool is_channels_last(const Tensor& self) {
  if (self.is_contiguous()) return false;
  int64_t stride = 1;
  for (const int dim : {1, 3, 2, 0}) {
    if (self.size(dim) != 1 && self.stride(dim) != stride) return false;
    stride *= self.size(dim);
  }
  return true;
}

// (N, H, W, C) -> (N, C, H, W), in channels-last memory or contiguous.
template <typename Device>
Tensor from_channels_last(const Tensor& self, bool channels_last) {
  const Tensor view = permuted(self, {0, 3, 1, 2});
  return channels_last ? view : Device::dense_copy(view);
}

inline Tensor cast(const Tensor& self, ScalarType dtype) {
  return self.scalar_type() == dtype ? self : torch::stable::to(self, dtype);
}

// Sums and coordinates are kept in at least float32.
template <typename T>
using accumulate_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

inline ScalarType accumulate_dtype(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline bool is_floating(ScalarType dtype) {
  return dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::Half ||
         dtype == ScalarType::BFloat16;
}

// Calls body.operator()<T>() with the C++ type of a floating dtype.
template <typename Body>
void dispatch_floating(ScalarType dtype, const char* name, const Body& body) {
  switch (dtype) {
    case ScalarType::Float:
      return body.template operator()<float>();
    case ScalarType::Double:
      return body.template operator()<double>();
    case ScalarType::Half:
      return body.template operator()<torch::headeronly::Half>();
    case ScalarType::BFloat16:
      return body.template operator()<torch::headeronly::BFloat16>();
    default:
      STD_TORCH_CHECK(false, name, ": dtype must be float32, float64, float16 or bfloat16");
  }
}

}  // namespace dcn_det
