// Inner loops for the CPU: one build for every x86-64, the best instruction set chosen at load time.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <bit>
#include <cstdint>

#include "common/bilinear.h"

// Before a function: compiled for SSE2, for AVX2 with FMA, and for AVX-512. What it calls is compiled along
// if it is inlined (so no lambdas). Needs the loader's indirect functions; elsewhere the baseline serves.
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__clang__) && __GNUC__ >= 12
#define DCN_DET_VECTORIZED __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define DCN_DET_VECTORIZED
#endif

namespace dcn_det {

// Conversions the compiler can vectorise; those of the types themselves branch or call.
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
