// Inner loops for the CPU, compiled for several instruction sets, one of which is chosen at load time.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <bit>
#include <cstdint>

#include "common/bilinear.h"
#include "cpu/instruction_set.h"

namespace dcn_det {

#if defined(DCN_DET_X86)
template <typename Loop, typename... Args>
__attribute__((target(DCN_DET_AVX2))) auto run_avx2(Args&... args) {
  return Loop::run(args...);
}

template <typename Loop, typename... Args>
__attribute__((target(DCN_DET_AVX512))) auto run_avx512(Args&... args) {
  return Loop::run(args...);
}
#endif

template <typename Loop, typename... Args>
auto run_baseline(Args&... args) {
  return Loop::run(args...);
}

// Runs the loop of the chosen instruction set.
template <typename Baseline, typename Avx2, typename Avx512, typename... Args>
auto vectorized_of(Args&... args) {
#if defined(DCN_DET_X86)
  switch (instruction_set()) {
    case InstructionSet::avx512:
      return run_avx512<Avx512>(args...);
    case InstructionSet::avx2:
      return run_avx2<Avx2>(args...);
    case InstructionSet::baseline:
      break;
  }
#endif
  return run_baseline<Baseline>(args...);
}

// Runs Loop::run(args...), compiled for the chosen instruction set. `run` is static and DCN_DET_INLINE, and
// so must be everything that it calls (hence no lambdas): only inlined code is compiled for that set.
template <typename Loop, typename... Args>
auto vectorized(Args&&... args) {
  return vectorized_of<Loop, Loop, Loop>(args...);
}

// The same for loops written for a vector size in bytes.
template <template <int> typename Loop, typename... Args>
auto vectorized(Args&&... args) {
  return vectorized_of<Loop<16>, Loop<32>, Loop<64>>(args...);
}

// Conversions that compilers can vectorize; the types' own conversions branch or call functions.
template <typename A, typename T>
DCN_DET_INLINE A load_as(const T& value) {
  return static_cast<A>(value);
}

template <typename T, typename A>
DCN_DET_INLINE T store_as(A value) {
  return static_cast<T>(value);
}

template <>
DCN_DET_INLINE float load_as<float, c10::BFloat16>(const c10::BFloat16& value) {
  return std::bit_cast<float>(static_cast<uint32_t>(value.x) << 16);
}

template <>
DCN_DET_INLINE c10::BFloat16 store_as<c10::BFloat16, float>(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return {static_cast<uint16_t>(value == value ? rounded : 0x7fc0), c10::BFloat16::from_bits()};
}

#if defined(__FLT16_MAX__)
template <>
DCN_DET_INLINE float load_as<float, c10::Half>(const c10::Half& value) {
  return static_cast<float>(std::bit_cast<_Float16>(value.x));
}

template <>
DCN_DET_INLINE c10::Half store_as<c10::Half, float>(float value) {
  return {std::bit_cast<uint16_t>(static_cast<_Float16>(value)), c10::Half::from_bits()};
}
#endif

}  // namespace dcn_det
