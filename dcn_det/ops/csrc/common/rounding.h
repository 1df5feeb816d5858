// Arithmetic that rounds the same way on every device.
#pragma once

#include "common/bilinear.h"

namespace dcn_det {

// A product that is not fused with a sum. Positions computed with it are the same to the bit on every tier,
// so that floor() sends a sample to the same cell everywhere. (Of the CPUs, the baseline that positions are
// compiled for has nothing to fuse with.)
DCN_DET_INLINE float product(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}

DCN_DET_INLINE double product(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __dmul_rn(a, b);
#else
  return a * b;
#endif
}

}  // namespace dcn_det
