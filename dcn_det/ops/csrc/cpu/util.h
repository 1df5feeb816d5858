// What the CPU kernels share.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/tensors.h"

// Compiles a function for three generations of x86 and chooses among them when the library is loaded. What
// such a function calls has to be inlined into it (ALWAYS_INLINE), or it stays at the oldest generation.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define PER_INSTRUCTION_SET __attribute__((target_clones("default", "arch=haswell", "arch=skylake-avx512")))
#else
#define PER_INSTRUCTION_SET
#endif
#define ALWAYS_INLINE __attribute__((always_inline)) inline

namespace dcn_det {

// The smallest number of items worth a thread of its own, when one costs about `item_work` multiplications.
inline int64_t grain(int64_t item_work) {
  return std::max<int64_t>(1, 32768 / std::max<int64_t>(1, item_work));
}

// Turns (bin, channel) into (channel, bin).
template <typename T>
void transpose(const T* by_bin, int64_t bins, int64_t channels, T* by_channel) {
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t bin = 0; bin < bins; ++bin) by_channel[c * bins + bin] = by_bin[bin * channels + c];
}

}  // namespace dcn_det
