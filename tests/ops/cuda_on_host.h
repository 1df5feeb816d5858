// Just enough of CUDA to run kernels one thread after the other with a host compiler.
#pragma once

#define __host__
#define __device__
#define __global__
#define __forceinline__ inline

struct Dim {
  unsigned x = 1, y = 1, z = 1;
};
inline Dim blockIdx, threadIdx, blockDim, gridDim;

template <typename T>
T atomicAdd(T* at, T value) {
  const T before = *at;
  *at += value;
  return before;
}

template <typename Kernel, typename... Args>
void launch(unsigned blocks, unsigned threads, Kernel kernel, Args... args) {
  gridDim.x = blocks;
  blockDim.x = threads;
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
    for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x) kernel(args...);
  }
}
