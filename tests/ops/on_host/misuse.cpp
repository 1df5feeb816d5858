// Kernels with one mistake each, to test that the shim reports it.
#include "arguments.h"

namespace {

__global__ void wrong_kernel(int kind, const float* in, float* out) {
  __shared__ float shared[64];
  const int thread = static_cast<int>(threadIdx.x);
  switch (kind) {
    case 0:  // no mistake
      shared[thread] = in[thread];
      __syncthreads();
      out[thread] = shared[63 - thread];
      return;
    case 1:  // no barrier
      shared[thread] = in[thread];
      out[thread] = shared[63 - thread];
      return;
    case 2:  // a barrier of the warp where one of the block is needed
      shared[thread] = in[thread];
      __syncwarp();
      out[thread] = shared[63 - thread];
      return;
    case 3:
      out[thread] = shared[thread];
      return;
    case 4:
      out[thread] = in[thread + 1];
      return;
    case 5:
      out[thread + 1] = 0;
      return;
    case 6:
      const_cast<float*>(in)[thread] = 0;
      return;
    case 7:
      out[0] = in[thread];
      return;
    case 8:
      out[thread] += in[thread];
      return;
    case 9:
      if (thread < 32) __syncthreads();
      return;
    case 10:
      if (thread % 2 == 0) return;
      out[thread] = __shfl_xor_sync(0xffffffffu, in[thread], 1);
      return;
    case 11:
      if (thread % 2 == 0) out[thread] = __shfl_xor_sync(0x55555555u, in[thread], 1);
      return;
    case 12:
      if (thread % 2 == 0) {
        __syncwarp();
      } else {
        out[thread] = __shfl_xor_sync(0xffffffffu, in[thread], 1);
      }
      return;
    case 13:
      out[thread] = static_cast<float>((INT32_MAX - 32 + thread) + thread);
      return;
    case 14: {
      struct alignas(16) Four {
        float at[4];
      };
      *reinterpret_cast<Four*>(out + 1) = {};
      return;
    }
    case 15:  // one thread adds atomically, the others write
      if (thread == 0) {
        atomicAdd(out, 1.f);
      } else {
        out[0] = 1.f;
      }
      return;
    default:
      out[thread] = static_cast<float>(static_cast<int>(in[thread] * 1e30f));
  }
}

// Sums over a warp, by each way of exchanging values between lanes.
__global__ void lanes_kernel(const float* in, float* out) {
  const int thread = static_cast<int>(threadIdx.x);
  float sum = in[thread];
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  float down = in[thread];
  for (int step = 16; step > 0; step /= 2) down += __shfl_down_sync(0xffffffffu, down, step);
  down = __shfl_sync(0xffffffffu, down, 0);
  const unsigned above = __ballot_sync(0xffffffffu, in[thread] > 0);
  out[thread] = sum == down ? sum + static_cast<float>(__builtin_popcount(above)) : -1.f;
}

}  // namespace

extern "C" void misuse(int64_t kind, const float* in, float* out) {
  cuda_on_host::launch({1}, 64, wrong_kernel, static_cast<int>(kind), in, out);
}

extern "C" void lanes(const float* in, float* out) { cuda_on_host::launch({1}, 64, lanes_kernel, in, out); }
