// CUDA kernels of RoI align: one thread per element of the output. Free of torch, so that a host compiler can
// compile them as well.
#pragma once

#include "common/roi_align.h"
#include "cuda/cell_window.cuh"

namespace dcn_det {

// The two cells around a sample along one axis.
template <typename A>
struct RoiAlignSample {
  int lower, upper;
  A fraction;  // weight of the upper cell; 0 if both are the same

  __device__ __forceinline__ RoiAlignSample(const RoiAlignAxis<A>& axis, A raw) {
    const A position = axis.clamp(raw);
    lower = static_cast<int>(position);
    fraction = position - static_cast<A>(lower);
    upper = fraction > A(0) ? lower + 1 : lower;
  }
};

// Samples of a bin, one axis at a time.
template <typename A>
struct RoiAlignBin {
  RoiAlignAxis<A> y_axis, x_axis;
  CellRange y_samples, x_samples;
  CellWindow<A> rows, columns;
  A count;

  __device__ __forceinline__ RoiAlignBin(const RoiAlignSizes& sizes, const A* roi, A spatial_scale,
                                         const OutputIndex& at)
      : y_axis(roi[2], roi[4], spatial_scale, sizes, sizes.height),
        x_axis(roi[1], roi[3], spatial_scale, sizes, sizes.width),
        y_samples(y_axis.candidates(at.row)),
        x_samples(x_axis.candidates(at.column)),
        count(static_cast<A>(y_axis.samples) * static_cast<A>(x_axis.samples)) {
    collect(y_axis, at.row, y_samples, rows);
    collect(x_axis, at.column, x_samples, columns);
  }

  // Whether the windows hold all cells; few bins are wider.
  __device__ __forceinline__ bool fits() const { return columns.fits() && rows.fits(); }

  // Calls visit(cell, weight) for the cells that the samples read, possibly several times per cell.
  template <typename Visit>
  __device__ __forceinline__ void for_each_cell(const OutputIndex& at, int width, Visit&& visit) const {
    for (int i = y_samples.begin; i < y_samples.end; ++i) {
      const A raw_y = y_axis.position(at.row, i);
      if (!y_axis.reads(raw_y)) continue;
      const RoiAlignSample<A> y(y_axis, raw_y);
      const int64_t lower = int64_t(y.lower) * width, upper = int64_t(y.upper) * width;
      const A bottom = y.fraction / count, top = (A(1) - y.fraction) / count;
      for (int j = x_samples.begin; j < x_samples.end; ++j) {
        const A raw_x = x_axis.position(at.column, j);
        if (!x_axis.reads(raw_x)) continue;
        const RoiAlignSample<A> x(x_axis, raw_x);
        visit(lower + x.lower, top * (A(1) - x.fraction));
        if (x.fraction > A(0)) visit(lower + x.upper, top * x.fraction);
        if (y.fraction > A(0)) visit(upper + x.lower, bottom * (A(1) - x.fraction));
        if (x.fraction > A(0) && y.fraction > A(0)) visit(upper + x.upper, bottom * x.fraction);
      }
    }
  }

 private:
  // Stops at the first sample that does not fit: a huge bin has many.
  __device__ __forceinline__ static void collect(const RoiAlignAxis<A>& axis, int bin,
                                                 const CellRange& samples, CellWindow<A>& window) {
    for (int i = samples.begin; i < samples.end && window.fits(); ++i) {
      const A raw = axis.position(bin, i);
      if (axis.reads(raw)) window.add(axis.clamp(raw));
    }
  }
};

template <typename T, typename A>
__global__ void __launch_bounds__(kThreads) roi_align_kernel(RoiAlignSizes sizes, const T* __restrict__ input,
                                                             const A* rois, A spatial_scale, T* output) {
  const int64_t count = sizes.rois * sizes.output_dim * sizes.bins();
  for (int64_t i = first_thread(); i < count; i += all_threads()) {
    const OutputIndex at(i, sizes.output_dim, sizes.pooled);
    const A* roi = rois + at.roi * 5;
    A sum = 0;
    if (is_valid_roi(roi, sizes.images)) {
      const T* plane = input + (static_cast<int64_t>(roi[0]) * sizes.output_dim + at.channel) * sizes.height *
                                   static_cast<int64_t>(sizes.width);
      const RoiAlignBin<A> bin(sizes, roi, spatial_scale, at);
      if (!bin.fits()) {
        bin.for_each_cell(at, sizes.width,
                          [&](int64_t cell, A weight) { sum += weight * static_cast<A>(plane[cell]); });
      } else if (bin.count > A(0)) {
        const CellValues<A> values(plane, sizes.width, bin.rows, bin.columns);
        sum = values.weighted(bin.rows, bin.columns) / bin.count;
      }
    }
    output[i] = static_cast<T>(sum);
  }
}

// Bins share cells, so that additions are atomic.
template <typename T, typename A, typename Sums>
__global__ void __launch_bounds__(kThreads)
    roi_align_grad_input_kernel(RoiAlignSizes sizes, const T* grad_output, const A* rois, A spatial_scale,
                                Sums input_sums) {
  const auto grad_input = input_sums.adder();
  const int64_t count = sizes.rois * sizes.output_dim * sizes.bins();
  for (int64_t i = first_thread(); i < count; i += all_threads()) {
    const OutputIndex at(i, sizes.output_dim, sizes.pooled);
    const A* roi = rois + at.roi * 5;
    if (!is_valid_roi(roi, sizes.images)) continue;
    const A grad = static_cast<A>(grad_output[i]);
    const int64_t plane = (static_cast<int64_t>(roi[0]) * sizes.output_dim + at.channel) * sizes.height *
                          static_cast<int64_t>(sizes.width);
    const RoiAlignBin<A> bin(sizes, roi, spatial_scale, at);
    if (!bin.fits()) {
      bin.for_each_cell(at, sizes.width,
                        [&](int64_t cell, A weight) { grad_input.add(plane + cell, weight * grad); });
    } else if (bin.count > A(0)) {
      add_to_cells(grad_input, sizes.input_size(), plane, sizes.width, grad / bin.count, bin.rows,
                   bin.columns);
    }
  }
}

}  // namespace dcn_det
