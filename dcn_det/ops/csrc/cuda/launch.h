// Helpers of launches: the current stream, layout copies, and sums that threads add to.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <initializer_list>

#include "common/tensor_ops.h"
#include "cuda/lanes.cuh"
#include "cuda/sums.cuh"
#include "cuda/transpose.cuh"

namespace dcn_det {

using torch::stable::accelerator::DeviceGuard;

inline cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

// Whether the tensor is aligned for the widest memory accesses.
inline bool is_aligned(const Tensor& tensor) {
  return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % kAccessBytes == 0;
}

// A contiguous copy of a 4-dimensional tensor, or the tensor itself if it is contiguous. Most copies are
// between (N, C, H, W) and (N, H, W, C) or transpose a matrix; PyTorch's general copy is several times
// slower.
inline Tensor dense_copy(const Tensor& self) {
  if (self.is_contiguous()) return self;
  const int64_t batch = self.size(0), a = self.size(1), b = self.size(2), c = self.size(3);
  const bool whole = self.stride(0) == a * b * c || batch == 1;
  const bool last_is_first = self.stride(3) == a * b && self.stride(1) == b && self.stride(2) == 1;
  const bool first_is_last = self.stride(1) == 1 && self.stride(2) == c * a && self.stride(3) == a;
  if (!whole || !(last_is_first || first_is_last)) return dense(self);
  const Tensor out = uninitialized(self, self.sizes());
  const int64_t rows = last_is_first ? c : b * c, columns = last_is_first ? a * b : a;
  const bool copied = dispatch_size(self.element_size(), [&]<typename Element>() {
    launch_transpose(static_cast<const Element*>(self.const_data_ptr()),
                     static_cast<Element*>(out.mutable_data_ptr()), batch, rows, columns,
                     [&](int64_t threads, auto kernel, auto... arguments) {
                       kernel<<<blocks_for(threads), kThreads, 0, current_stream(self)>>>(arguments...);
                     });
  });
  if (!copied) return dense(self);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

// Raises a word on the device to the bits of the largest magnitude in a contiguous tensor.
inline void measure(const Tensor& values, Word* largest) {
  if (values.numel() == 0) return;
  dispatch_floating(values.scalar_type(), "deterministic sums", [&]<typename T>() {
    largest_kernel<T, accumulate_t<T>><<<blocks_for(values.numel()), kThreads, 0, current_stream(values)>>>(
        values.const_data_ptr<T>(), values.numel(), largest);
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

// Calls body(sums) to fill `result`, contiguous zeros of dtype A. Deterministic sums need the maximum number
// of terms, and contiguous tensors whose largest magnitudes, multiplied, bound a term.
template <typename A, typename Body>
void add_up(const Tensor& result, bool deterministic, double terms, std::initializer_list<Tensor> factors,
            const Body& body) {
  A* const data = result.mutable_data_ptr<A>();
  if (!deterministic) {
    body(FloatingSums<A>{data});
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    return;
  }
  constexpr int parts = std::is_same_v<A, double> ? 2 : 1;
  const int64_t count = result.numel(), words = static_cast<int64_t>(factors.size());
  const auto new_words = [&](int64_t size) {
    Tensor tensor = uninitialized(result, {size}, ScalarType::Long);
    return torch::stable::zero_(tensor);
  };
  const auto words_of = [](const Tensor& tensor) {
    return reinterpret_cast<Word*>(tensor.mutable_data_ptr<int64_t>());
  };
  const Tensor sums = new_words(parts * count), largest = new_words(words), spoiled = new_words(1);
  const Tensor grid = uninitialized(result, {2}, ScalarType::Double);
  auto* const grid_data = reinterpret_cast<FixedPoint*>(grid.mutable_data_ptr<double>());
  int64_t word = 0;
  for (const Tensor& factor : factors) measure(factor, words_of(largest) + word++);
  const cudaStream_t stream = current_stream(result);
  fixed_point_kernel<<<1, 1, 0, stream>>>(words_of(largest), static_cast<int>(words), terms, grid_data);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  const FixedPointSums<A> target{words_of(sums), parts == 2 ? words_of(sums) + count : nullptr, grid_data,
                                 words_of(spoiled)};
  body(target);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  finish_sums_kernel<A><<<blocks_for(count), kThreads, 0, stream>>>(target, count, data);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace dcn_det
