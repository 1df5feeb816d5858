// What the RoI pooling kernels for the CPU share.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/tensor_ops.h"
#include "cpu/vectorize.h"

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
