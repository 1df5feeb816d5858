// Additions to the stable ABI: operators called by name, layouts, and dispatch by dtype.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>

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

// A view of the elements from `offset` on, counted from the tensor's first. Unlike PyTorch's views, this and
// the functions below do not go through the dispatcher, which costs more than a small kernel, and know
// nothing of autograd: PyTorch's worker threads, which do not know that the caller runs below autograd, would
// record operations on tensors that require gradients.
inline Tensor restrided(const Tensor& self, IntHeaderOnlyArrayRef sizes, IntHeaderOnlyArrayRef strides,
                        int64_t offset = 0) {
  AtenTensorHandle result;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(
      self.get(), static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), offset, &result));
  return Tensor(result);
}

// Sizes or strides of up to 4 dimensions.
struct Dimensions {
  std::array<int64_t, 4> values{};
  size_t count;

  explicit Dimensions(IntHeaderOnlyArrayRef from) : count(from.size()) {
    STD_TORCH_CHECK(count <= values.size(), "too many dimensions");
    std::copy(from.begin(), from.end(), values.begin());
  }
  operator IntHeaderOnlyArrayRef() const { return {values.data(), count}; }
};

inline Tensor detached(const Tensor& self) { return restrided(self, self.sizes(), self.strides()); }

inline Tensor narrowed(const Tensor& self, int64_t dim, int64_t start, int64_t length) {
  Dimensions sizes(self.sizes());
  sizes.values[dim] = length;
  return restrided(self, sizes, self.strides(), start * self.stride(dim));
}

// Without the first dimension.
inline Tensor selected(const Tensor& self, int64_t index) {
  const IntHeaderOnlyArrayRef sizes = self.sizes(), strides = self.strides();
  return restrided(self, {sizes.data() + 1, sizes.size() - 1}, {strides.data() + 1, strides.size() - 1},
                   index * self.stride(0));
}

inline Tensor permuted(const Tensor& self, IntHeaderOnlyArrayRef order) {
  Dimensions sizes(self.sizes()), strides(self.strides());
  for (size_t i = 0; i < sizes.count; ++i) {
    sizes.values[i] = self.size(order[i]);
    strides.values[i] = self.stride(order[i]);
  }
  return restrided(self, sizes, strides);
}

// With the last two dimensions exchanged.
inline Tensor transposed(const Tensor& self) {
  Dimensions sizes(self.sizes()), strides(self.strides());
  std::swap(sizes.values[sizes.count - 1], sizes.values[sizes.count - 2]);
  std::swap(strides.values[sizes.count - 1], strides.values[sizes.count - 2]);
  return restrided(self, sizes, strides);
}

// Strides of contiguous memory.
inline Dimensions dense_strides(IntHeaderOnlyArrayRef sizes) {
  Dimensions strides(sizes);
  int64_t stride = 1;
  for (size_t i = sizes.size(); i-- > 0; stride *= sizes[i]) strides.values[i] = stride;
  return strides;
}

// A contiguous tensor in another shape.
inline Tensor reshaped(const Tensor& self, IntHeaderOnlyArrayRef sizes) {
  return restrided(self, sizes, dense_strides(sizes));
}

// An uninitialized contiguous tensor on the device of `like`, by default in its dtype.
inline Tensor uninitialized(const Tensor& like, IntHeaderOnlyArrayRef sizes,
                            std::optional<ScalarType> dtype = std::nullopt) {
  const Dimensions strides = dense_strides(sizes);
  int32_t device_type, type;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  if (dtype) {
    type = torch::stable::detail::to<int32_t>(torch::stable::detail::from(*dtype));
  } else {
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &type));
  }
  AtenTensorHandle result;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(),
                                                         strides.values.data(), type, device_type,
                                                         like.get_device_index(), &result));
  return Tensor(result);
}

inline Tensor dense(const Tensor& self) {
  return self.is_contiguous() ? self : torch::stable::contiguous(self);
}

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
