// The overlap of two boxes, the same bits on every device; free of torch.
#pragma once

#include <cmath>

#include "common/rounding.h"

namespace dcn_det {

// Half-open: the width is x2 - x1.
template <typename A>
struct alignas(4 * sizeof(A)) Box {
  A x1, y1, x2, y2;
};

template <typename A>
DCN_DET_INLINE A area_of(const Box<A>& box) {
  return rounded_product(box.x2 - box.x1, box.y2 - box.y1);
}

template <typename A>
DCN_DET_INLINE A common_area(const Box<A>& a, const Box<A>& b) {
  const A left = a.x1 > b.x1 ? a.x1 : b.x1, right = a.x2 < b.x2 ? a.x2 : b.x2;
  const A top = a.y1 > b.y1 ? a.y1 : b.y1, bottom = a.y2 < b.y2 ? a.y2 : b.y2;
  const A width = right - left, height = bottom - top;
  return rounded_product(width > A(0) ? width : A(0), height > A(0) ? height : A(0));
}

// Whether the intersection over union exceeds a threshold of at least 0; false if it is NaN, as for two empty
// boxes or non-finite coordinates.
template <typename A>
DCN_DET_INLINE bool overlap_exceeds(A threshold, const Box<A>& a, A area_a, const Box<A>& b, A area_b) {
  const A common = common_area(a, b);
  return common / (area_a + area_b - common) > threshold;
}

// True wherever overlap_exceeds is true, and rarely elsewhere, without its costly division. Rounding
// preserves order: if the rounded quotient exceeds the threshold, so does the exact quotient, and the
// intersection exceeds the exact product.
template <typename A>
DCN_DET_INLINE bool overlap_may_exceed(A threshold, const Box<A>& a, A area_a, const Box<A>& b, A area_b) {
  const A common = common_area(a, b);
  return common >= threshold * (area_a + area_b - common);
}

// The largest A that does not exceed the threshold: an A exceeds this value exactly if it exceeds the
// threshold.
template <typename A>
inline A threshold_as(double threshold) {
  const A nearest = static_cast<A>(threshold);
  return static_cast<double>(nearest) > threshold ? std::nextafter(nearest, A(0)) : nearest;
}

}  // namespace dcn_det
