// Threads that stride over their work; free of torch, so that a host compiler can run the kernels, too.
#pragma once

#include <cstdint>

namespace dcn_det {

__device__ __forceinline__ int64_t first_thread() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

__device__ __forceinline__ int64_t all_threads() { return static_cast<int64_t>(gridDim.x) * blockDim.x; }

// An element of the output (R, channels, pooled, pooled).
struct OutputIndex {
  int64_t roi, channel;
  int row, column;

  __device__ __forceinline__ OutputIndex(int64_t index, int64_t channels, int pooled) {
    column = static_cast<int>(index % pooled);
    row = static_cast<int>(index / pooled % pooled);
    channel = index / (static_cast<int64_t>(pooled) * pooled) % channels;
    roi = index / (static_cast<int64_t>(pooled) * pooled) / channels;
  }
};

}  // namespace dcn_det
