// RoI align: the corners of a region are not rounded, and a bin is the mean of bilinear samples at the
// centers of equal parts.
#pragma once

#include "common/psroi_pool.h"

namespace dcn_det {

// Every bin reads all channels: output_dim is the number of channels and group is 1.
struct RoiAlignSizes : PsroiSizes {
  int sampling_ratio;  // samples along each axis of a bin; 0: the cells that the bin spans, rounded up
  bool aligned;
};

// One axis of a region, from its half-open corners in image pixels; over cells [0, size).
template <typename T>
struct RoiAlignAxis {
  T start, bin_extent;
  int samples, size;  // samples: per bin
  bool adaptive;

  DCN_DET_INLINE RoiAlignAxis(T first, T last, T spatial_scale, const RoiAlignSizes& sizes, int size)
      : size(size), adaptive(sizes.sampling_ratio == 0) {
    const T shift = sizes.aligned ? T(0.5) : T(0);
    start = rounded_product(first, spatial_scale) - shift;
    T extent = rounded_product(last, spatial_scale) - shift - start;
    if (!sizes.aligned && extent < T(1)) extent = T(1);
    bin_extent = extent / static_cast<T>(sizes.pooled);
    samples = adaptive ? to_count(std::ceil(bin_extent), kMostSamples) : sizes.sampling_ratio;
  }

  DCN_DET_INLINE T position(int bin, int sample) const {
    return bin_start(bin) +
           rounded_product(static_cast<T>(sample) + T(0.5), bin_extent) / static_cast<T>(samples);
  }

  // A range that contains all samples of a bin that read the map. A huge region has as many samples as cells:
  // visiting all of them would not finish in practice.
  DCN_DET_INLINE CellRange candidates(int bin) const {
    if (!adaptive || samples == 0) return {0, samples};
    const T step = bin_extent / static_cast<T>(samples), before = T(-1) - bin_start(bin);
    return {to_count(before / step - T(1.5), samples),
            to_count((before + static_cast<T>(size) + T(1)) / step + T(1.5), samples)};
  }

  // Samples within one cell of the map are clamped to it; those farther out count as zeros.
  DCN_DET_INLINE bool reads(T position) const {
    return position >= T(-1) && position <= static_cast<T>(size);
  }
  DCN_DET_INLINE T clamp(T position) const {
    const T last = static_cast<T>(size - 1);
    return position < T(0) ? T(0) : (position > last ? last : position);
  }

 private:
  static constexpr int kMostSamples = 1 << 24;

  DCN_DET_INLINE T bin_start(int bin) const {
    return start + rounded_product(static_cast<T>(bin), bin_extent);
  }
  // Within [0, most]; 0 for NaN.
  DCN_DET_INLINE static int to_count(T value, int most) {
    return value > T(0) ? (value < static_cast<T>(most) ? static_cast<int>(value) : most) : 0;
  }
};

}  // namespace dcn_det
