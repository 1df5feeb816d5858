// CUDA kernels of deformable position-sensitive RoI pooling: one thread per element of the output, or some
// lanes of a warp per offset. Free of torch, so that a host compiler can compile them as well.
#pragma once

#include "common/deform_psroi_pool.h"
#include "cuda/sums.cuh"

namespace dcn_det {

// Regions and offsets as passed to the operator; offset is null without offsets.
template <typename A>
struct DeformPsroiRegions {
  const A* rois;
  const A* offset;
  A spatial_scale, offset_std;
};

// Samples of a bin. The scale of a bin that reads nothing is 0.
template <typename A>
struct DeformPsroiBin {
  Roi<A> roi;
  SampleAxis<A> x, y;
  A scale;

  __device__ __forceinline__ DeformPsroiBin(const DeformPsroiSizes& sizes,
                                            const DeformPsroiRegions<A>& regions, int64_t r, int64_t class_,
                                            int row, int column)
      : roi(read_roi(regions.rois + r * 5, regions.spatial_scale, A(-0.5), sizes.images)),
        x(RoiAxis<A>(roi.x, roi.width, sizes.pooled, sizes.samples), column,
          offset(sizes, regions, r, class_, row, column, 0), sizes.samples, sizes.width),
        y(RoiAxis<A>(roi.y, roi.height, sizes.pooled, sizes.samples), row,
          offset(sizes, regions, r, class_, row, column, sizes.offset_plane()), sizes.samples, sizes.height) {
    const int count = roi.valid ? x.count() * y.count() : 0;
    scale = count > 0 ? A(1) / static_cast<A>(count) : A(0);
  }

  // Index of the first cell of the plane that the bin reads for an output channel.
  __device__ __forceinline__ int64_t plane(const DeformPsroiSizes& sizes, int64_t channel, int row,
                                           int column) const {
    return (roi.image * sizes.input_channels() + sizes.source_channel(channel, row, column)) * sizes.height *
           sizes.width;
  }

 private:
  __device__ __forceinline__ static A offset(const DeformPsroiSizes& sizes,
                                             const DeformPsroiRegions<A>& regions, int64_t r, int64_t class_,
                                             int row, int column, int64_t plane) {
    if (regions.offset == nullptr) return A(0);
    return rounded_product(regions.offset[sizes.offset_index(r, class_, row, column) + plane],
                           regions.offset_std);
  }
};

template <typename T, typename A>
__global__ void __launch_bounds__(kThreads)
    deform_psroi_pool_kernel(DeformPsroiSizes sizes, DeformPsroiRegions<A> regions, const T* input,
                             T* output) {
  const int64_t count = sizes.rois * sizes.output_dim * sizes.bins();
  for (int64_t i = first_thread(); i < count; i += all_threads()) {
    const OutputIndex at(i, sizes.output_dim, sizes.pooled);
    const DeformPsroiBin<A> bin(sizes, regions, at.roi, at.channel / sizes.channels_per_class(), at.row,
                                at.column);
    A sum = 0;
    if (bin.scale > A(0)) {
      const T* plane = input + bin.plane(sizes, at.channel, at.row, at.column);
      CellWalker<A> rows(bin.y);
      for (CellSum<A> row; rows.next(row);) {
        A row_sum = 0;
        CellWalker<A> columns(bin.x);
        for (CellSum<A> column; columns.next(column);)
          row_sum += column.weight * static_cast<A>(plane[int64_t(row.cell) * sizes.width + column.cell]);
        sum += row.weight * row_sum;
      }
    }
    output[i] = static_cast<T>(bin.scale * sum);
  }
}

// Bins overlap, so that additions are atomic.
template <typename T, typename A, typename Sums>
__global__ void __launch_bounds__(kThreads)
    deform_psroi_pool_grad_input_kernel(DeformPsroiSizes sizes, DeformPsroiRegions<A> regions,
                                        const T* grad_output, Sums grad_input) {
  const int64_t count = sizes.rois * sizes.output_dim * sizes.bins();
  for (int64_t i = first_thread(); i < count; i += all_threads()) {
    const OutputIndex at(i, sizes.output_dim, sizes.pooled);
    const DeformPsroiBin<A> bin(sizes, regions, at.roi, at.channel / sizes.channels_per_class(), at.row,
                                at.column);
    if (bin.scale == A(0)) continue;
    const A grad = bin.scale * static_cast<A>(grad_output[i]);
    const int64_t plane = bin.plane(sizes, at.channel, at.row, at.column);
    CellWalker<A> rows(bin.y);
    for (CellSum<A> row; rows.next(row);) {
      CellWalker<A> columns(bin.x);
      for (CellSum<A> column; columns.next(column);)
        grad_input.add(plane + int64_t(row.cell) * sizes.width + column.cell,
                       grad * row.weight * column.weight);
    }
  }
}

// The first bin of a part; bins [first_bin_of_part(part), first_bin_of_part(part + 1)) read it.
__device__ __forceinline__ int first_bin_of_part(int part, int parts, int bins) {
  return (part * bins + parts - 1) / parts;
}

// One group of `lanes` threads, a power of 2 that divides a warp, per pair of offsets. The lanes share the
// channels of the class and the bins of the part, and their sums have a fixed order.
template <typename T, typename A>
__global__ void __launch_bounds__(kThreads)
    deform_psroi_pool_grad_offset_kernel(DeformPsroiSizes sizes, DeformPsroiRegions<A> regions,
                                         const T* input, const T* grad_output, A* grad_offset, int lanes) {
  const int64_t pairs = sizes.rois * sizes.classes * sizes.offset_plane();
  // All lanes of a warp leave the loop together, because the sum needs them.
  const int64_t threads = (pairs * lanes + kWarp - 1) / kWarp * kWarp;
  for (int64_t thread = first_thread(); thread < threads; thread += all_threads()) {
    const int64_t pair = thread / lanes;
    const int lane = static_cast<int>(thread % lanes);
    const OutputIndex at(pair, sizes.classes, sizes.part);
    const int64_t r = at.roi, class_ = at.channel;
    const int part_row = at.row, part_column = at.column;
    const int top = first_bin_of_part(part_row, sizes.part, sizes.pooled);
    const int left = first_bin_of_part(part_column, sizes.part, sizes.pooled);
    const int rows = first_bin_of_part(part_row + 1, sizes.part, sizes.pooled) - top;
    const int columns = first_bin_of_part(part_column + 1, sizes.part, sizes.pooled) - left;
    const int64_t items = pair < pairs ? int64_t(rows) * columns * sizes.channels_per_class() : 0;
    A grad_x = 0, grad_y = 0;
    for (int64_t item = lane; item < items; item += lanes) {
      const int row = top + static_cast<int>(item / columns % rows);
      const int column = left + static_cast<int>(item % columns);
      const int64_t channel = class_ * sizes.channels_per_class() + item / columns / rows;
      const DeformPsroiBin<A> bin(sizes, regions, r, class_, row, column);
      if (bin.scale == A(0)) continue;
      const T* plane = input + bin.plane(sizes, channel, row, column);
      A sum_x = 0, sum_y = 0;
      CellWalker<A> y(bin.y);
      for (CellSum<A> a; y.next(a);) {
        A row_sum = 0, row_slope = 0;
        CellWalker<A> x(bin.x);
        for (CellSum<A> b; x.next(b);) {
          const A value = static_cast<A>(plane[int64_t(a.cell) * sizes.width + b.cell]);
          row_sum += b.weight * value;
          row_slope += b.slope * value;
        }
        sum_x += a.weight * row_slope;
        sum_y += a.slope * row_sum;
      }
      const int64_t out = ((r * sizes.output_dim + channel) * sizes.pooled + row) * sizes.pooled + column;
      const A grad = bin.scale * static_cast<A>(grad_output[out]) * regions.offset_std;
      grad_x += grad * bin.roi.width * sum_x;
      grad_y += grad * bin.roi.height * sum_y;
    }
    grad_x = sum_over_lanes(grad_x, lanes);
    grad_y = sum_over_lanes(grad_y, lanes);
    if (lane == 0 && pair < pairs) {
      const int64_t target = (r * sizes.classes + class_) * 2 * sizes.offset_plane() +
                             static_cast<int64_t>(part_row) * sizes.part + part_column;
      grad_offset[target] = grad_x;
      grad_offset[target + sizes.offset_plane()] = grad_y;
    }
  }
}

}  // namespace dcn_det
