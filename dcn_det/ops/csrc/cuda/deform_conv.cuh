// The deformable convolution's CUDA kernels: a warp for each sample, lanes over its channels, which lie next
// to each other in memory. Free of torch, so that a host compiler can run them, too, with one lane.
#pragma once

#include "common/deform_conv_shape.h"

namespace dcn_det {

#if defined(__CUDACC__)
constexpr int kLanes = 32;
#else
constexpr int kLanes = 1;
#endif

template <typename A>
__device__ __forceinline__ A sum_over_lanes(A value) {
#if defined(__CUDACC__)
  for (int step = kLanes / 2; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
#endif
  return value;
}

// Sample `index` of a tile, in the order [row][offset group][tap].
struct SampleIndex {
  int64_t row, image, cell;
  int offset_group, tap;

  __device__ __forceinline__ SampleIndex(const DeformConvShape& shape, int64_t first, int64_t index) {
    const Division by_tap = divide(index, shape.taps());
    const Division by_group = divide(by_tap.quotient, shape.offset_groups);
    const Division by_image = divide(first + by_group.quotient, shape.out_cells());
    tap = static_cast<int>(by_tap.remainder);
    offset_group = static_cast<int>(by_group.remainder);
    row = by_group.quotient;
    image = by_image.quotient;
    cell = by_image.remainder;
  }
};

// The corners' modulated weights and their places in a map of shape.channels channels.
template <typename A>
struct CornerReads {
  int64_t place[4];
  A weight[4];

  __device__ __forceinline__ CornerReads(const DeformConvShape& shape, const SampleIndex& index,
                                         const Sample<A>& sample) {
    const int64_t map = index.image * shape.cells();
    for (int k = 0; k < 4; ++k) {
      place[k] = (map + sample.cell(k, shape.width)) * shape.channels;
      weight[k] = sample.modulation * sample.weight(k);
    }
  }
};

// Columns for the output positions first, first + 1, ... of a tile of `rows`.
template <typename T, typename A>
__global__ void fill_columns_kernel(DeformConvShape shape, const T* features, Planes<const A> offset,
                                    Planes<const A> mask, Columns<T> columns, int64_t first, int64_t rows) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * blockDim.x / kLanes;
  const int64_t samples = rows * shape.offset_groups * shape.taps();
  const int lane = static_cast<int>(thread % kLanes), count = shape.offset_group_channels();
  for (int64_t i = thread / kLanes; i < samples; i += warps) {
    const SampleIndex index(shape, first, i);
    const Sample<A> sample =
        sample_at(shape, offset, mask, index.image, index.cell, index.offset_group, index.tap);
    const int begin = index.offset_group * count;
    if (!sample.inside) {
      for (int c = begin + lane; c < begin + count; c += kLanes)
        *columns.at(index.row, index.tap, c) = T(0.f);
      continue;
    }
    const CornerReads<A> read(shape, index, sample);
    for (int c = begin + lane; c < begin + count; c += kLanes) {
      A value = 0;
      for (int k = 0; k < 4; ++k) value += read.weight[k] * static_cast<A>(features[read.place[k] + c]);
      *columns.at(index.row, index.tap, c) = static_cast<T>(value);
    }
  }
}

// The gradients of a tile's samples. `columns` holds the columns' gradients; with `keep_columns` the columns
// take their place. Of the gradients, those whose pointer is null are left out. Maps overlap, so that
// grad_features is added to atomically; every other element is written by one warp.
template <typename T, typename A>
__global__ void sweep_kernel(DeformConvShape shape, const T* features, Planes<const A> offset,
                             Planes<const A> mask, Columns<T> columns, A* grad_features,
                             Planes<A> grad_offset, Planes<A> grad_mask, bool keep_columns, int64_t first,
                             int64_t rows) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * blockDim.x / kLanes;
  const int64_t samples = rows * shape.offset_groups * shape.taps();
  const int lane = static_cast<int>(thread % kLanes), count = shape.offset_group_channels();
  for (int64_t i = thread / kLanes; i < samples; i += warps) {
    const SampleIndex index(shape, first, i);
    const Sample<A> sample =
        sample_at(shape, offset, mask, index.image, index.cell, index.offset_group, index.tap);
    const int begin = index.offset_group * count;
    A grad_y = 0, grad_x = 0, grad_modulation = 0;
    if (sample.inside) {
      const CornerReads<A> read(shape, index, sample);
      A sums[4] = {0, 0, 0, 0};  // over channels of grad * feature
      for (int c = begin + lane; c < begin + count; c += kLanes) {
        T* column = columns.at(index.row, index.tap, c);
        const A grad = static_cast<A>(*column);
        A value = 0;
        for (int k = 0; k < 4; ++k) {
          const A feature = static_cast<A>(features[read.place[k] + c]);
          value += read.weight[k] * feature;
          sums[k] += grad * feature;
          if (grad_features != nullptr && read.weight[k] != A(0)) {
            atomicAdd(grad_features + read.place[k] + c, read.weight[k] * grad);
          }
        }
        if (keep_columns) *column = static_cast<T>(value);
      }
      for (int k = 0; k < 4; ++k) {
        grad_y += sample.modulation * sample.slope_y(k) * sums[k];
        grad_x += sample.modulation * sample.slope_x(k) * sums[k];
        grad_modulation += sample.weight(k) * sums[k];
      }
    } else if (keep_columns) {
      for (int c = begin + lane; c < begin + count; c += kLanes)
        *columns.at(index.row, index.tap, c) = T(0.f);
    }
    const int64_t channel = static_cast<int64_t>(index.offset_group) * shape.taps() + index.tap;
    if (grad_offset.data != nullptr) {
      grad_y = sum_over_lanes(grad_y);
      grad_x = sum_over_lanes(grad_x);
      if (lane == 0) {
        grad_offset.at(index.image, 2 * channel, index.cell) = grad_y;
        grad_offset.at(index.image, 2 * channel + 1, index.cell) = grad_x;
      }
    }
    if (grad_mask.data != nullptr) {
      grad_modulation = sum_over_lanes(grad_modulation);
      if (lane == 0) grad_mask.at(index.image, channel, index.cell) = grad_modulation;
    }
  }
}

}  // namespace dcn_det
