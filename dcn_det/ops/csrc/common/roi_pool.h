// RoI max pooling: a region is rounded to whole cells, at least one, before it is divided into bins.
#pragma once

#include "common/roi.h"

namespace dcn_det {

struct RoiPoolSizes {
  int64_t images, rois, channels;
  int height, width, pooled;

  DCN_DET_INLINE int64_t bins() const { return int64_t(pooled) * pooled; }
};

// One axis of a region, from its inclusive corners in image pixels.
template <typename T>
struct RoiPoolAxis {
  int start;
  T bin_extent;

  DCN_DET_INLINE RoiPoolAxis(T first, T last, T spatial_scale, int bins)
      : start(to_cell(first, spatial_scale)) {
    const int extent = to_cell(last, spatial_scale) - start + 1;
    bin_extent = static_cast<T>(extent > 1 ? extent : 1) / static_cast<T>(bins);
  }

  // The cells of a bin, clipped to [0, size); neighboring bins overlap.
  DCN_DET_INLINE CellRange cells(int bin, int size) const {
    const int begin = static_cast<int>(std::floor(rounded_product(static_cast<T>(bin), bin_extent))) + start;
    const int end = static_cast<int>(std::ceil(rounded_product(static_cast<T>(bin + 1), bin_extent))) + start;
    return {begin < 0 ? 0 : (begin < size ? begin : size), end < 0 ? 0 : (end < size ? end : size)};
  }

 private:
  // Rounds half away from zero, within bounds far beyond any map, so that the sum of two cells fits an int.
  DCN_DET_INLINE static int to_cell(T coordinate, T spatial_scale) {
    const T limit = T(1 << 28);
    const T cell = std::round(rounded_product(coordinate, spatial_scale));
    return static_cast<int>(cell < -limit ? -limit : (cell > limit ? limit : cell));
  }
};

}  // namespace dcn_det
