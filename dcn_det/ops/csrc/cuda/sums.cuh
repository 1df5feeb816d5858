// Sums that many threads add to: in floating point, where the order of additions affects the last digits, or
// in integers, where it does not.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "cuda/grid.cuh"

namespace dcn_det {

#if (defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900) || defined(DCN_DET_ON_HOST)
constexpr bool kWideAtomics = true;
__device__ __forceinline__ void add_four(float4* at, const float4& values) { atomicAdd(at, values); }
#else
constexpr bool kWideAtomics = false;
__device__ void add_four(float4* at, const float4& values);  // not called
#endif

// Floating point sums, in the order in which threads arrive.
template <typename A>
struct FloatingSums {
  A* data;

  // Number of neighboring values per atomic addition.
  static constexpr int kWidth = kWideAtomics && std::is_same_v<A, float> ? 4 : 1;

  __device__ __forceinline__ bool wanted() const { return data != nullptr; }

  // What a thread adds with.
  __device__ __forceinline__ const FloatingSums& adder() const { return *this; }

  __device__ __forceinline__ void add(int64_t place, A value) const { atomicAdd(data + place, value); }

  // `place` is a multiple of kWidth if N is.
  template <int N>
  __device__ __forceinline__ void add(int64_t place, const A (&values)[N]) const {
    if constexpr (kWidth == 4 && N % 4 == 0) {
      for (int i = 0; i < N; i += 4)
        add_four(reinterpret_cast<float4*>(data + place + i),
                 make_float4(values[i], values[i + 1], values[i + 2], values[i + 3]));
    } else {
      for (int i = 0; i < N; ++i) add(place + i, values[i]);
    }
  }
};

// Scales of a fixed-point number: value = (high + low / fine) / scale. Both are powers of 2; `scale` is NaN
// if a term may be non-finite.
struct FixedPoint {
  double scale, fine;
};

constexpr int kSumBits = 62;  // of a fixed-point sum, plus the sign and one spare bit

// Fixed-point sums, the same bits for any order of additions: every term is rounded to the same grid, and
// integers are added. A float64 term is split into two parts that do not overlap. Integers hold neither
// infinity nor NaN: a term that exceeds the grid, because a product overflowed on its way here, spoils all
// sums.
template <typename A>
struct FixedPointSums {
  Word* high;
  Word* low;  // null except for float64
  const FixedPoint* grid;
  Word* spoiled;  // not 0 once a term exceeded the grid

  // A thread loads the scales once: atomic operations in between would make it load them again for every
  // term.
  struct Adder {
    FixedPointSums sums;
    FixedPoint scales;

    static constexpr int kWidth = 1;

    __device__ __forceinline__ bool wanted() const { return sums.high != nullptr; }

    __device__ __forceinline__ void add(int64_t place, A value) const {
      const double scaled = static_cast<double>(value) * scales.scale;
      const long long whole = __double2ll_rn(scaled);  // saturates; NaN becomes the least integer
      constexpr Word kLimit = Word(1) << kSumBits;
      if (static_cast<Word>(whole) + kLimit >= 2 * kLimit) {
        // Otherwise all sums become NaN anyway.
        if (scales.scale == scales.scale) atomicOr(sums.spoiled, Word(1));
        return;
      }
      atomicAdd(sums.high + place, static_cast<Word>(whole));
      if constexpr (std::is_same_v<A, double>) {
        const double rest = (scaled - static_cast<double>(whole)) * scales.fine;
        atomicAdd(sums.low + place, static_cast<Word>(__double2ll_rn(rest)));
      }
    }

    template <int N>
    __device__ __forceinline__ void add(int64_t place, const A (&values)[N]) const {
      for (int i = 0; i < N; ++i) add(place + i, values[i]);
    }
  };

  __device__ __forceinline__ Adder adder() const { return {*this, *grid}; }
};

// Raises *largest, the bits of a double, to the largest magnitude of the values; NaN exceeds infinity.
template <typename T, typename A>
__global__ void __launch_bounds__(kThreads) largest_kernel(const T* values, int64_t count, Word* largest) {
  Word most = 0;  // non-negative numbers are ordered like their bits
  for (int64_t i = first_thread(); i < count; i += all_threads()) {
    const double magnitude = std::fabs(static_cast<double>(static_cast<A>(values[i])));
    const Word bits = static_cast<Word>(__double_as_longlong(magnitude));
    most = bits > most ? bits : most;
  }
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const Word other = __shfl_xor_sync(kAllLanes, most, step);
    most = other > most ? other : most;
  }
  if (threadIdx.x % kWarp == 0 && most > 0) atomicMax(largest, most);
}

// Computes the grid for at most `terms` terms, each at most the product of the magnitudes in `largest`. One
// thread.
static __global__ void fixed_point_kernel(const Word* largest, int factors, double terms, FixedPoint* grid) {
  int count_bits = 0;
  std::frexp(terms, &count_bits);
  int exponent = count_bits;
  bool zero = false, finite = true;
  for (int i = 0; i < factors; ++i) {
    const double value = __longlong_as_double(static_cast<long long>(largest[i]));
    int factor_bits = 0;
    if (value - value == 0) {
      std::frexp(value, &factor_bits);
    } else {
      finite = false;
    }
    exponent += factor_bits;
    zero = zero || value == 0;
  }
  int shift = zero ? 0 : kSumBits - exponent;
  shift = shift < -1000 ? -1000 : (shift > 1000 ? 1000 : shift);
  grid->scale = finite ? std::ldexp(1.0, shift) : NAN;
  grid->fine = std::ldexp(1.0, kSumBits - count_bits);
}

template <typename A>
__global__ void __launch_bounds__(kThreads)
    finish_sums_kernel(FixedPointSums<A> sums, int64_t count, A* result) {
  const double scale = *sums.spoiled == 0 ? sums.grid->scale : NAN;
  for (int64_t i = first_thread(); i < count; i += all_threads()) {
    double value = static_cast<double>(static_cast<long long>(sums.high[i]));
    if constexpr (std::is_same_v<A, double>)
      value += static_cast<double>(static_cast<long long>(sums.low[i])) / sums.grid->fine;
    result[i] = static_cast<A>(value / scale);
  }
}

}  // namespace dcn_det
