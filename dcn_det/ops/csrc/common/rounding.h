// Arithmetic that rounds the same way on every device.
#pragma once

#include "common/inline.h"

namespace dcn_det {

// A product that is rounded before anything is added to it. Compilers may round a * b + c only once, and two
// tiers would disagree where it matters: on the cell that floor() sends a sample to, on boxes whose overlap
// is next to the threshold. (Compilers for the CPU do so only where they may contract: a loop that is
// compiled for other than the baseline of x86-64 and needs this has to forbid it.)
DCN_DET_INLINE float rounded_product(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}

DCN_DET_INLINE double rounded_product(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __dmul_rn(a, b);
#else
  return a * b;
#endif
}

}  // namespace dcn_det
