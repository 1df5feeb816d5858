// Non-maximum suppression: when one box suppresses another. Boxes are (x1, y1, x2, y2) with width x2 - x1.
#pragma once

#include <cmath>

#include "common/rounding.h"

namespace dcn_det {

template <typename T>
struct Box {
  T x1, y1, x2, y2, area;

  DCN_DET_INLINE static Box read(const T* corners) {
    return {corners[0], corners[1], corners[2], corners[3],
            product(corners[2] - corners[0], corners[3] - corners[1])};
  }
};

// A box that holds a NaN, or whose score is one, is never kept.
template <typename T>
DCN_DET_INLINE bool is_candidate(const T* corners, T score) {
  return score == score && corners[0] == corners[0] && corners[1] == corners[1] && corners[2] == corners[2] &&
         corners[3] == corners[3];
}

template <typename T>
DCN_DET_INLINE T intersection(const Box<T>& a, const Box<T>& b) {
  const T width = (a.x2 < b.x2 ? a.x2 : b.x2) - (a.x1 > b.x1 ? a.x1 : b.x1);
  const T height = (a.y2 < b.y2 ? a.y2 : b.y2) - (a.y1 > b.y1 ? a.y1 : b.y1);
  return product(width > T(0) ? width : T(0), height > T(0) ? height : T(0));
}

// Whether the intersection over union is above the threshold; 0 / 0 is not.
template <typename T>
DCN_DET_INLINE bool suppresses(const Box<T>& a, const Box<T>& b, T threshold) {
  const T shared = intersection(a, b);
  return shared / (a.area + b.area - shared) > threshold;
}

// The largest T that is not above a double: a quotient of type T is above one where it is above the other.
template <typename T>
inline T round_down(double value) {
  const T rounded = static_cast<T>(value);
  return static_cast<double>(rounded) > value ? std::nextafter(rounded, T(-1)) : rounded;
}

}  // namespace dcn_det
