// Where the samples of a deformable position-sensitive RoI pooling bin fall. A bin's grid of samples is a
// product of two axes, weights and validity included, so that one axis at a time is all there is to compute.
#pragma once

#include "common/psroi_pool.h"

namespace dcn_det {

// What every bin shares.
struct DeformPsroiSizes : PsroiSizes {
  int64_t classes;  // pairs of offset planes, each for output_dim / classes channels; 1 without offsets
  int part, samples;

  DCN_DET_INLINE int64_t channels_per_class() const { return output_dim / classes; }
  DCN_DET_INLINE int64_t offset_plane() const { return int64_t(part) * part; }
  // The x offset of a bin; its y offset lies one plane further.
  DCN_DET_INLINE int64_t offset_index(int64_t roi, int64_t class_, int row, int column) const {
    return (roi * classes + class_) * 2 * offset_plane() + part_of_bin(row, pooled, part) * part +
           part_of_bin(column, pooled, part);
  }
};

// One axis of a region, cut into bins and samples.
template <typename T>
struct RoiAxis {
  T origin, extent, bin_extent, step;

  DCN_DET_INLINE RoiAxis(T origin, T extent, int bins, int samples)
      : origin(origin),
        extent(extent),
        bin_extent(extent / static_cast<T>(bins)),
        step(bin_extent / static_cast<T>(samples)) {}
};

// One axis of a bin's grid: samples at start + i * step for i in [0, samples), over cells [0, size).
template <typename T>
struct SampleAxis {
  T start, step;
  int samples, size;

  // `offset` moves the bin, relative to the region's extent.
  DCN_DET_INLINE SampleAxis(const RoiAxis<T>& roi, int bin, T offset, int samples, int size)
      : start(product(static_cast<T>(bin), roi.bin_extent) + roi.origin + product(offset, roi.extent)),
        step(roi.step),
        samples(samples),
        size(size) {}

  DCN_DET_INLINE T position(int sample) const { return start + product(static_cast<T>(sample), step); }
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

// Walks the cells that an axis reads, in increasing order and each once, with the sum of its samples'
// interpolation weights and the sum of their derivatives with respect to the position.
template <typename T>
struct CellWalker {
  SampleAxis<T> axis;
  int cell = 0, sample = 0;
  T weight = 0, next_weight = 0, slope = 0, next_slope = 0;  // of `cell` and of the one after it

  DCN_DET_INLINE explicit CellWalker(const SampleAxis<T>& axis) : axis(axis) {}

  DCN_DET_INLINE bool next(int& index, T& index_weight, T& index_slope) {
    for (; sample < axis.samples; ++sample) {
      const T raw = axis.position(sample);
      if (!axis.counts(raw)) continue;
      const T position = axis.clamp(raw);
      const int lower = static_cast<int>(position);
      const T fraction = position - static_cast<T>(lower);
      if (lower != cell) {
        if (weight > T(0)) return emit(index, index_weight, index_slope);
        cell = lower;
      }
      weight += T(1) - fraction;
      next_weight += fraction;
      if (fraction > T(0)) {
        slope -= T(1);
        next_slope += T(1);
      }
    }
    return weight > T(0) && emit(index, index_weight, index_slope);
  }

 private:
  DCN_DET_INLINE bool emit(int& index, T& index_weight, T& index_slope) {
    index = cell++;
    index_weight = weight;
    index_slope = slope;
    weight = next_weight;
    slope = next_slope;
    next_weight = next_slope = T(0);
    return true;
  }
};

}  // namespace dcn_det
