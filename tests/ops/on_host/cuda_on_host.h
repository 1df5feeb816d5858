// The part of CUDA that the kernels use, for a host compiler: every thread of a block is a fiber, scheduled
// by cuda_on_host.cpp. Kernels are compiled with -fsanitize=thread, but linked without its library: the calls
// that the compiler inserts before every memory access go to cuda_on_host.cpp, which checks them. To run
// another kernel, include its header and launch it, as in nms.cpp.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>

#define DCN_DET_ON_HOST
#define __host__
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static  // blocks run one after the other
#define CUDA_ON_HOST_UNCHECKED __attribute__((no_sanitize("thread"), noinline))

namespace cuda_on_host {

struct Dim {
  unsigned x = 1, y = 1, z = 1;
};

struct Indices {
  Dim thread, block, blocks, threads;
};
extern Indices indices;  // of the running thread

enum class Collective : int { barrier, shuffle, vote };

// Waits until all lanes of the mask have reached the same operation; returns the values that they passed.
void meet(unsigned mask, Collective kind, uint64_t value, uint64_t (&values)[32]);
void synchronize_block();
// Checks an atomic operation.
void access_atomically(void* at, size_t size);
void run(Dim grid, unsigned threads, void (*body)(void*), void* context, size_t context_size);
void fail(const char* message);  // ends the launch

template <typename... Parameters>
struct Call {
  void (*kernel)(Parameters...);
  std::tuple<std::decay_t<Parameters>...> arguments;

  static void body(void* self) {
    std::apply(static_cast<Call*>(self)->kernel, static_cast<Call*>(self)->arguments);
  }
};

template <typename... Parameters>
void launch(Dim grid, unsigned threads, void (*kernel)(Parameters...),
            std::type_identity_t<std::decay_t<Parameters>>... arguments) {
  using Kernel = Call<Parameters...>;
  Kernel call{kernel, {arguments...}};
  run(grid, threads, &Kernel::body, &call, sizeof(call));
}

template <typename T>
CUDA_ON_HOST_UNCHECKED T shuffled(unsigned mask, T value, int source, int width) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0, values[32];
  std::memcpy(&bits, &value, sizeof(T));
  meet(mask, Collective::shuffle, bits, values);
  const int lane = static_cast<int>(indices.thread.x % 32);
  if (source < lane / width * width || source >= lane / width * width + width) source = lane;
  if ((mask >> source & 1) == 0) fail("a shuffle reads a lane that is not in its mask");
  std::memcpy(&value, &values[source], sizeof(T));
  return value;
}

template <typename T, typename Change>
CUDA_ON_HOST_UNCHECKED T atomically(T* at, const Change& change) {
  access_atomically(at, sizeof(T));
  const T before = *at;
  *at = change(before);
  return before;
}

}  // namespace cuda_on_host

#define threadIdx (cuda_on_host::indices.thread)
#define blockIdx (cuda_on_host::indices.block)
#define blockDim (cuda_on_host::indices.threads)
#define gridDim (cuda_on_host::indices.blocks)

struct alignas(16) float4 {
  float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

inline void __syncthreads() { cuda_on_host::synchronize_block(); }

CUDA_ON_HOST_UNCHECKED inline void __syncwarp(unsigned mask = 0xffffffffu) {
  uint64_t values[32];
  cuda_on_host::meet(mask, cuda_on_host::Collective::barrier, 0, values);
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  return cuda_on_host::shuffled(mask, value, lane / width * width + source % width, width);
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
  return cuda_on_host::shuffled(mask, value, static_cast<int>(threadIdx.x % 32) ^ lanes, width);
}

template <typename T>
T __shfl_down_sync(unsigned mask, T value, int lanes, int width = 32) {
  return cuda_on_host::shuffled(mask, value, static_cast<int>(threadIdx.x % 32) + lanes, width);
}

CUDA_ON_HOST_UNCHECKED inline unsigned __ballot_sync(unsigned mask, bool vote) {
  uint64_t values[32];
  cuda_on_host::meet(mask, cuda_on_host::Collective::vote, vote, values);
  unsigned votes = 0;
  for (int lane = 0; lane < 32; ++lane)
    if ((mask >> lane & 1) != 0 && values[lane] != 0) votes |= 1u << lane;
  return votes;
}

template <typename T>
T atomicAdd(T* at, T value) {
  return cuda_on_host::atomically(at, [=](T before) { return before + value; });
}

// Each of the four values is added separately.
inline float4 atomicAdd(float4* at, float4 value) {
  if (reinterpret_cast<uintptr_t>(at) % sizeof(float4) != 0) cuda_on_host::fail("misaligned atomicAdd");
  auto* parts = reinterpret_cast<float*>(at);
  return {atomicAdd(parts, value.x), atomicAdd(parts + 1, value.y), atomicAdd(parts + 2, value.z),
          atomicAdd(parts + 3, value.w)};
}

inline unsigned long long atomicMax(unsigned long long* at, unsigned long long value) {
  return cuda_on_host::atomically(at,
                                  [=](unsigned long long before) { return before > value ? before : value; });
}

inline unsigned long long atomicOr(unsigned long long* at, unsigned long long value) {
  return cuda_on_host::atomically(at, [=](unsigned long long before) { return before | value; });
}

inline int __popcll(unsigned long long bits) { return __builtin_popcountll(bits); }
inline int __ffsll(long long bits) { return __builtin_ffsll(bits); }

// Saturates as the GPU does; NaN becomes the least integer.
inline long long __double2ll_rn(double value) {
  if (value >= 0x1p63) return INT64_MAX;
  return value >= -0x1p63 ? std::llrint(value) : INT64_MIN;
}

inline long long __double_as_longlong(double value) {
  long long bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

inline double __longlong_as_double(long long bits) {
  double value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
