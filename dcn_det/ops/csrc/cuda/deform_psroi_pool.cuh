// CUDA kernels of deformable position-sensitive RoI pooling: one thread per element of the output, or some
// lanes of a warp per offset. Free of torch, so that a host compiler can compile them as well.
#pragma once

#include "common/deform_psroi_pool.h"
#include "cuda/cell_window.cuh"

namespace dcn_det {

// Regions and offsets as passed to the operator; offset is null without offsets.
template <typename A>
struct DeformPsroiRegions {
  const A* rois;
  const A* offset;
  A spatial_scale, offset_std;
};

// By how much a bin is moved, relative to its region.
template <typename A>
struct DeformPsroiMove {
  A x = 0, y = 0;

  __device__ __forceinline__ DeformPsroiMove(const DeformPsroiSizes& sizes,
                                             const DeformPsroiRegions<A>& regions, int64_t r, int64_t class_,
                                             int row, int column) {
    if (regions.offset == nullptr) return;
    const A* pair = regions.offset + sizes.offset_index(r, class_, row, column);
    x = rounded_product(pair[0], regions.offset_std);
    y = rounded_product(pair[sizes.offset_plane()], regions.offset_std);
  }
};

// Samples of a bin. The scale of a bin that reads nothing is 0.
template <typename A>
struct DeformPsroiBin {
  Roi<A> roi;
  SampleAxis<A> x, y;
  CellWindow<A> columns, rows;
  A scale;

  __device__ __forceinline__ DeformPsroiBin(const DeformPsroiSizes& sizes,
                                            const DeformPsroiRegions<A>& regions, int64_t r, int64_t class_,
                                            int row, int column)
      : DeformPsroiBin(sizes, DeformPsroiMove<A>(sizes, regions, r, class_, row, column),
                       read_roi(regions.rois + r * 5, regions.spatial_scale, A(-0.5), sizes.images), row,
                       column) {}

  // Whether the windows hold all cells; few bins are wider.
  __device__ __forceinline__ bool fits() const { return columns.fits() && rows.fits(); }

  // Index of the first cell of the plane that the bin reads for an output channel.
  __device__ __forceinline__ int64_t plane(const DeformPsroiSizes& sizes, int64_t channel, int row,
                                           int column) const {
    return (roi.image * sizes.input_channels() + sizes.source_channel(channel, row, column)) * sizes.height *
           sizes.width;
  }

 private:
  __device__ __forceinline__ DeformPsroiBin(const DeformPsroiSizes& sizes, const DeformPsroiMove<A>& move,
                                            const Roi<A>& roi, int row, int column)
      : roi(roi),
        x(RoiAxis<A>(roi.x, roi.width, sizes.pooled, sizes.samples), column, move.x, sizes.samples,
          sizes.width),
        y(RoiAxis<A>(roi.y, roi.height, sizes.pooled, sizes.samples), row, move.y, sizes.samples,
          sizes.height) {
    for (int i = 0; i < sizes.samples; ++i) {
      const A at_x = x.position(i), at_y = y.position(i);
      if (x.counts(at_x)) columns.add(x.clamp(at_x));
      if (y.counts(at_y)) rows.add(y.clamp(at_y));
    }
    const int count = roi.valid ? columns.samples * rows.samples : 0;
    scale = count > 0 ? A(1) / static_cast<A>(count) : A(0);
  }
};

// Sums over the cells of a plane that a bin reads.
template <typename A>
struct DeformPsroiSums {
  A value = 0, slope_x = 0, slope_y = 0;

  template <typename T>
  __device__ __forceinline__ DeformPsroiSums(const T* plane, int width, const DeformPsroiBin<A>& bin) {
    if (bin.fits()) {
      const CellValues<A> values(plane, width, bin.rows, bin.columns);
#pragma unroll
      for (int j = 0; j < kWindow; ++j) {
        A row_sum = 0, row_slope = 0;
#pragma unroll
        for (int k = 0; k < kWindow; ++k) {
          row_sum += bin.columns.weight[k] * values.at[j][k];
          row_slope += bin.columns.slope[k] * values.at[j][k];
        }
        add_row(bin.rows.weight[j], bin.rows.slope[j], row_sum, row_slope);
      }
    } else {
      CellWalker<A> rows(bin.y);
      for (CellSum<A> row; rows.next(row);) {
        A row_sum = 0, row_slope = 0;
        CellWalker<A> columns(bin.x);
        for (CellSum<A> column; columns.next(column);) {
          const A cell = static_cast<A>(plane[int64_t(row.cell) * width + column.cell]);
          row_sum += column.weight * cell;
          row_slope += column.slope * cell;
        }
        add_row(row.weight, row.slope, row_sum, row_slope);
      }
    }
  }

 private:
  __device__ __forceinline__ void add_row(A weight, A slope, A row_sum, A row_slope) {
    value += weight * row_sum;
    slope_x += weight * row_slope;
    slope_y += slope * row_sum;
  }
};

template <typename T, typename A>
__global__ void __launch_bounds__(kThreads)
    deform_psroi_pool_kernel(DeformPsroiSizes sizes, DeformPsroiRegions<A> regions,
                             const T* __restrict__ input, T* output) {
  const int64_t count = sizes.rois * sizes.output_dim * sizes.bins();
  for (int64_t i = first_thread(); i < count; i += all_threads()) {
    const OutputIndex at(i, sizes.output_dim, sizes.pooled);
    const DeformPsroiBin<A> bin(sizes, regions, at.roi, sizes.class_of(at.channel), at.row, at.column);
    A sum = 0;
    if (bin.scale > A(0)) {
      const int64_t plane = bin.plane(sizes, at.channel, at.row, at.column);
      sum = DeformPsroiSums<A>(input + plane, sizes.width, bin).value;
    }
    output[i] = static_cast<T>(bin.scale * sum);
  }
}

// Both gradients, one thread per element of the output. Bins overlap, so that additions to the input's are
// atomic. `grad_offset` is null unless every output has offsets of its own (see owns_offsets).
template <typename T, typename A, typename Sums>
__global__ void __launch_bounds__(kThreads)
    deform_psroi_pool_backward_kernel(DeformPsroiSizes sizes, DeformPsroiRegions<A> regions,
                                      const T* __restrict__ input, const T* __restrict__ grad_output,
                                      Sums input_sums, A* grad_offset) {
  const auto grad_input = input_sums.adder();
  const int64_t count = sizes.rois * sizes.output_dim * sizes.bins();
  for (int64_t i = first_thread(); i < count; i += all_threads()) {
    const OutputIndex at(i, sizes.output_dim, sizes.pooled);
    const int64_t class_ = sizes.class_of(at.channel);
    const DeformPsroiBin<A> bin(sizes, regions, at.roi, class_, at.row, at.column);
    A grad_x = 0, grad_y = 0;
    if (bin.scale > A(0)) {
      const A grad = bin.scale * static_cast<A>(grad_output[i]);
      const int64_t plane = bin.plane(sizes, at.channel, at.row, at.column);
      if (grad_offset != nullptr) {
        const DeformPsroiSums<A> sums(input + plane, sizes.width, bin);
        grad_x = grad * regions.offset_std * bin.roi.width * sums.slope_x;
        grad_y = grad * regions.offset_std * bin.roi.height * sums.slope_y;
      }
      if (grad_input.wanted()) {
        if (bin.fits()) {
          add_to_cells(grad_input, sizes.input_size(), plane, sizes.width, grad, bin.rows, bin.columns);
        } else {
          CellWalker<A> rows(bin.y);
          for (CellSum<A> row; rows.next(row);) {
            CellWalker<A> columns(bin.x);
            for (CellSum<A> column; columns.next(column);)
              grad_input.add(plane + int64_t(row.cell) * sizes.width + column.cell,
                             grad * row.weight * column.weight);
          }
        }
      }
    }
    if (grad_offset != nullptr) {
      A* target = grad_offset + sizes.offset_index(at.roi, class_, at.row, at.column);
      target[0] = grad_x;
      target[sizes.offset_plane()] = grad_y;
    }
  }
}

// Whether each element of the output has a pair of offsets that no other one reads.
inline bool owns_offsets(const DeformPsroiSizes& sizes) {
  return sizes.classes == sizes.output_dim && sizes.part == sizes.pooled;
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
                                         const T* __restrict__ input, const T* __restrict__ grad_output,
                                         A* grad_offset, int lanes) {
  const int64_t pairs = sizes.rois * sizes.classes * sizes.offset_plane();
  // All lanes of a warp leave the loop together, because the sum needs them.
  const int64_t threads = (pairs * lanes + kWarp - 1) / kWarp * kWarp;
  for (int64_t thread = first_thread(); thread < threads; thread += all_threads()) {
    const Division by_lanes = divide(thread, lanes);
    const int64_t pair = by_lanes.quotient;
    const int lane = static_cast<int>(by_lanes.remainder);
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
      const Division by_column = divide(item, columns), by_row = divide(by_column.quotient, rows);
      const int row = top + static_cast<int>(by_row.remainder);
      const int column = left + static_cast<int>(by_column.remainder);
      const int64_t channel = class_ * sizes.channels_per_class() + by_row.quotient;
      const DeformPsroiBin<A> bin(sizes, regions, r, class_, row, column);
      if (bin.scale == A(0)) continue;
      const DeformPsroiSums<A> sums(input + bin.plane(sizes, channel, row, column), sizes.width, bin);
      const int64_t out = ((r * sizes.output_dim + channel) * sizes.pooled + row) * sizes.pooled + column;
      const A grad = bin.scale * static_cast<A>(grad_output[out]) * regions.offset_std;
      grad_x += grad * bin.roi.width * sums.slope_x;
      grad_y += grad * bin.roi.height * sums.slope_y;
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
