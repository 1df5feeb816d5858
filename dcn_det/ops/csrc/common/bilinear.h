// Bilinear interpolation of a feature map, one axis at a time; shared by the CPU and CUDA kernels.
#pragma once

#include <cmath>

#include "common/inline.h"

namespace dcn_det {

// The value of a sampling point beyond the map.
// - zeros: the map is surrounded by zeros, as in torchvision and DCNv2; within one cell of the map, values
//   fade out.
// - dcn_v1: the authors' first release: zero outside [0, size); inside, the last row and column are repeated.
enum class Border : int { zeros, dcn_v1 };

// The two cells around a coordinate. The interpolated value is the sum of weight * cell, its derivative with
// respect to the coordinate the sum of slope * cell. Cells lie in the map even if their weight is 0.
template <typename A>
struct Axis {
  int cell[2];
  A weight[2];
  A slope[2];
};

// Whether a coordinate reads the map; false for NaN.
template <typename A>
DCN_DET_INLINE bool reads_map(Border border, A at, int size) {
  return border == Border::zeros ? (at > A(-1) && at < A(size)) : (at >= A(0) && at < A(size));
}

// The cells around a coordinate that reads the map.
template <typename A>
DCN_DET_INLINE Axis<A> axis_at(Border border, A at, int size) {
  const A low = std::floor(at);
  const int first = static_cast<int>(low);
  const A fraction = at - low;
  const bool has_first = first >= 0;
  const bool has_second = first + 1 < size;
  Axis<A> axis;
  axis.cell[0] = has_first ? first : 0;
  axis.cell[1] = has_second ? first + 1 : size - 1;
  const bool repeat_last = border == Border::dcn_v1 && !has_second;
  axis.weight[0] = repeat_last ? A(1) : (has_first ? A(1) - fraction : A(0));
  axis.weight[1] = has_second ? fraction : A(0);
  axis.slope[0] = has_first && !repeat_last ? A(-1) : A(0);
  axis.slope[1] = has_second ? A(1) : A(0);
  return axis;
}

}  // namespace dcn_det
