// How threads share the work of a launch. Free of torch and of CUDA's headers, so that a host compiler can
// compile the kernels as well.
#pragma once

#include <cstdint>

#include "common/division.h"

namespace dcn_det {

using Word = unsigned long long;  // 64-bit type of atomic functions

constexpr int kThreads = 256;  // per block
constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;  // per block
constexpr unsigned kAllLanes = 0xffffffffu;

// Blocks for so many threads, at most as many as keep any GPU busy; kernels stride over the rest.
inline unsigned blocks_for(int64_t threads) {
  constexpr int64_t most = 1 << 20;
  const int64_t blocks = (threads + kThreads - 1) / kThreads;
  return static_cast<unsigned>(blocks < 1 ? 1 : (blocks < most ? blocks : most));
}

__device__ __forceinline__ int64_t first_thread() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

__device__ __forceinline__ int64_t all_threads() { return static_cast<int64_t>(gridDim.x) * blockDim.x; }

// The sum over `lanes` neighboring lanes, a power of 2, returned to each of them. All lanes of the warp must
// call it.
template <typename A>
__device__ __forceinline__ A sum_over_lanes(A value, int lanes) {
  for (int step = lanes / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}

// Indices of an element of the output, (R, channels, pooled, pooled).
struct OutputIndex {
  int64_t roi, channel;
  int row, column;

  __device__ __forceinline__ OutputIndex(int64_t index, int64_t channels, int pooled) {
    const Division by_column = divide(index, pooled);
    const Division by_row = divide(by_column.quotient, pooled);
    const Division by_channel = divide(by_row.quotient, channels);
    column = static_cast<int>(by_column.remainder);
    row = static_cast<int>(by_row.remainder);
    channel = by_channel.remainder;
    roi = by_channel.quotient;
  }
};

}  // namespace dcn_det
