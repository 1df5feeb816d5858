// Division of indices; shared by the CPU and CUDA kernels.
#pragma once

#include <cstdint>

#include "common/inline.h"

namespace dcn_det {

// Divides with the 32-bit instruction where possible: it is several times faster, especially on GPUs.
struct Division {
  int64_t quotient, remainder;
};

DCN_DET_INLINE Division divide(int64_t value, int64_t divisor) {
  if (static_cast<uint64_t>(value | divisor) <= UINT32_MAX) {
    const auto small = static_cast<uint32_t>(value), by = static_cast<uint32_t>(divisor);
    return {small / by, small % by};
  }
  return {value / divisor, value % divisor};
}

}  // namespace dcn_det
