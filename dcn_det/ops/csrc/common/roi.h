// Regions of interest as in the authors' pooling operators: (image, x1, y1, x2, y2) with inclusive corners in
// image pixels. Shared by all devices; free of torch.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/rounding.h"

namespace dcn_det {

// A region in cells of the feature map. `valid` is false if a coordinate or the extent is not finite or if
// there is no such image; such a region pools to zero and gives no gradient.
template <typename T>
struct Roi {
  T x, y, width, height;
  int64_t image;
  bool valid;
};

template <typename T>
DCN_DET_INLINE bool is_finite(T value) {
  return value - value == T(0);
}

template <typename T>
DCN_DET_INLINE bool is_valid_roi(const T* row, int64_t images) {
  const T image = row[0], x1 = row[1], y1 = row[2], x2 = row[3], y2 = row[4];  // a GPU loads them at once
  return image >= T(0) && image < static_cast<T>(images) && is_finite(x1) && is_finite(y1) && is_finite(x2) &&
         is_finite(y2);
}

// Corners are rounded half away from zero before they are scaled; the bottom-right one is taken at its outer
// edge. `shift` is -0.5 if cells are sampled at their centers, and 0 if whole cells are counted.
template <typename T>
DCN_DET_INLINE Roi<T> read_roi(const T* row, T spatial_scale, T shift, int64_t images) {
  Roi<T> roi{};
  roi.valid = is_valid_roi(row, images);
  if (!roi.valid) return roi;
  const T min_extent = T(0.1);
  roi.image = static_cast<int64_t>(row[0]);
  roi.x = rounded_product(std::round(row[1]), spatial_scale) + shift;
  roi.y = rounded_product(std::round(row[2]), spatial_scale) + shift;
  const T end_x = rounded_product(std::round(row[3]) + T(1), spatial_scale) + shift;
  const T end_y = rounded_product(std::round(row[4]) + T(1), spatial_scale) + shift;
  if (!is_finite(end_x - roi.x) || !is_finite(end_y - roi.y)) return Roi<T>{};
  roi.width = end_x - roi.x > min_extent ? end_x - roi.x : min_extent;
  roi.height = end_y - roi.y > min_extent ? end_y - roi.y : min_extent;
  return roi;
}

// Cells [begin, end) along one axis.
struct CellRange {
  int begin, end;
  DCN_DET_INLINE int size() const { return end > begin ? end - begin : 0; }
};

// The cells that [begin, end] touches, clipped to [0, size) without overflowing an int.
template <typename T>
DCN_DET_INLINE CellRange touched_cells(T begin, T end, int size) {
  const T limit = static_cast<T>(size);
  const T first = std::floor(begin), last = std::ceil(end);
  CellRange range;
  range.begin = first > T(0) ? (first < limit ? static_cast<int>(first) : size) : 0;
  range.end = last > T(0) ? (last < limit ? static_cast<int>(last) : size) : 0;
  return range;
}

// Index of the part, of `parts` equal ones, that holds bin `bin` of `bins`; all are below 2^15. Usually every
// bin has its own part, and a GPU divides slowly.
DCN_DET_INLINE int part_of_bin(int bin, int bins, int parts) {
  return parts == bins ? bin : bin * parts / bins;
}

}  // namespace dcn_det
