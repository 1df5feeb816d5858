// Sample positions of deformable position-sensitive RoI pooling. The samples of a bin form a grid, the
// product of two axes, and so do their weights and validity: everything is computed one axis at a time.
#pragma once

#include "common/division.h"
#include "common/psroi_pool.h"

namespace dcn_det {

// Sizes that all bins share.
struct DeformPsroiSizes : PsroiSizes {
  int64_t classes;  // pairs of offset planes, one per output_dim / classes channels; 1 without offsets
  int part, samples;

  DCN_DET_INLINE int64_t channels_per_class() const { return divide(output_dim, classes).quotient; }
  DCN_DET_INLINE int64_t class_of(int64_t channel) const {
    return classes == output_dim ? channel : divide(channel, channels_per_class()).quotient;
  }
  DCN_DET_INLINE int64_t offset_plane() const { return int64_t(part) * part; }
  // Index of a bin's x offset; its y offset is one plane further.
  DCN_DET_INLINE int64_t offset_index(int64_t roi, int64_t class_, int row, int column) const {
    return (roi * classes + class_) * 2 * offset_plane() + part_of_bin(row, pooled, part) * part +
           part_of_bin(column, pooled, part);
  }
};

// One axis of a region, divided into bins and samples.
template <typename T>
struct RoiAxis {
  T origin, extent, bin_extent, step;

  DCN_DET_INLINE RoiAxis(T origin, T extent, int bins, int samples)
      : origin(origin),
        extent(extent),
        bin_extent(extent / static_cast<T>(bins)),
        step(bin_extent / static_cast<T>(samples)) {}
};

// Position of a bin's first sample; `offset` moves the bin, relative to the region's extent.
template <typename T>
DCN_DET_INLINE T bin_start(T origin, T extent, T bin_extent, int bin, T offset) {
  return rounded_product(static_cast<T>(bin), bin_extent) + origin + rounded_product(offset, extent);
}

// One axis of a bin's grid: samples at start + i * step for i in [0, samples), over cells [0, size).
template <typename T>
struct SampleAxis {
  T start, step;
  int samples, size;

  DCN_DET_INLINE SampleAxis(const RoiAxis<T>& roi, int bin, T offset, int samples, int size)
      : start(bin_start(roi.origin, roi.extent, roi.bin_extent, bin, offset)),
        step(roi.step),
        samples(samples),
        size(size) {}

  DCN_DET_INLINE T position(int sample) const {
    return start + rounded_product(static_cast<T>(sample), step);
  }
  DCN_DET_INLINE bool counts(T position) const {
    return position >= T(-0.5) && position <= static_cast<T>(size) - T(0.5);
  }
  DCN_DET_INLINE T clamp(T position) const {
    const T last = static_cast<T>(size - 1);
    return position < T(0) ? T(0) : (position > last ? last : position);
  }
  DCN_DET_INLINE int count() const {
    int counted = 0;
    for (int i = 0; i < samples; ++i) counted += counts(position(i)) ? 1 : 0;
    return counted;
  }
};

// A cell read along an axis: the sum of its samples' interpolation weights, and the sum of their derivatives
// with respect to the position.
template <typename T>
struct CellSum {
  int cell;
  T weight, slope;
};

// Visits the cells read along an axis, in increasing order and each once.
template <typename T>
class CellWalker {
 public:
  DCN_DET_INLINE explicit CellWalker(const SampleAxis<T>& axis) : axis_(axis), here_{0, T(0), T(0)} {}

  DCN_DET_INLINE bool next(CellSum<T>& sum) {
    for (; sample_ < axis_.samples; ++sample_) {
      const T raw = axis_.position(sample_);
      if (!axis_.counts(raw)) continue;
      const T position = axis_.clamp(raw);
      const int lower = static_cast<int>(position);
      const T fraction = position - static_cast<T>(lower);
      if (lower != here_.cell) {
        if (here_.weight > T(0)) return step(sum);
        here_.cell = lower;
      }
      const T inside = fraction > T(0) ? T(1) : T(0);
      here_.weight += T(1) - fraction;
      here_.slope -= inside;
      next_weight_ += fraction;
      next_slope_ += inside;
    }
    return here_.weight > T(0) && step(sum);
  }

 private:
  // Returns the cell and moves to the next one.
  DCN_DET_INLINE bool step(CellSum<T>& sum) {
    sum = here_;
    here_ = {here_.cell + 1, next_weight_, next_slope_};
    next_weight_ = next_slope_ = T(0);
    return true;
  }

  SampleAxis<T> axis_;
  CellSum<T> here_;
  T next_weight_ = 0, next_slope_ = 0;
  int sample_ = 0;
};

}  // namespace dcn_det
