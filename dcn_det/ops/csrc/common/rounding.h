// Arithmetic that rounds the same way on all devices.
#pragma once

#include "common/inline.h"

namespace dcn_det {

// A product that is rounded before anything is added to it. Compilers may round a * b + c only once, and
// tiers would then disagree on the cell that floor() assigns to a sample, or on boxes whose overlap is close
// to the threshold. (CPU compilers do so only where contraction is allowed: loops that rely on this and are
// compiled for more than the baseline of x86-64 must forbid contraction, see cpu/no_contraction.h.)
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
