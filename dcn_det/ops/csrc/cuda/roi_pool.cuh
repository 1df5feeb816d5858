// CUDA kernels of RoI max pooling: one thread per element of the output. Free of torch, so that a host
// compiler can compile them as well.
#pragma once

#include "common/roi_pool.h"
#include "cuda/sums.cuh"

namespace dcn_det {

// The first of equal cells wins; a NaN wins over all numbers.
template <typename T, typename A>
__global__ void __launch_bounds__(kThreads) roi_pool_kernel(RoiPoolSizes sizes, const T* input, const A* rois,
                                                            A spatial_scale, T* output, int32_t* argmax) {
  const int64_t count = sizes.rois * sizes.channels * sizes.bins();
  for (int64_t i = first_thread(); i < count; i += all_threads()) {
    const OutputIndex at(i, sizes.channels, sizes.pooled);
    const A* roi = rois + at.roi * 5;
    A best = 0;
    int32_t index = -1;
    if (is_valid_roi(roi, sizes.images)) {
      const RoiPoolAxis<A> x_axis(roi[1], roi[3], spatial_scale, sizes.pooled);
      const RoiPoolAxis<A> y_axis(roi[2], roi[4], spatial_scale, sizes.pooled);
      const CellRange rows = y_axis.cells(at.row, sizes.height);
      const CellRange columns = x_axis.cells(at.column, sizes.width);
      const T* plane = input + (static_cast<int64_t>(roi[0]) * sizes.channels + at.channel) * sizes.height *
                                   static_cast<int64_t>(sizes.width);
      for (int y = rows.begin; y < rows.end; ++y)
        for (int x = columns.begin; x < columns.end; ++x) {
          const int32_t cell = y * sizes.width + x;
          const A value = static_cast<A>(plane[cell]);
          if (index < 0 || value > best || (value != value && best == best)) {
            best = value;
            index = cell;
          }
        }
    }
    output[i] = static_cast<T>(best);
    argmax[i] = index;
  }
}

// Bins share cells, so that additions are atomic.
template <typename T, typename A, typename Sums>
__global__ void __launch_bounds__(kThreads)
    roi_pool_grad_input_kernel(RoiPoolSizes sizes, const T* grad_output, const A* rois, const int32_t* argmax,
                               Sums input_sums) {
  const auto grad_input = input_sums.adder();
  const int64_t count = sizes.rois * sizes.channels * sizes.bins();
  const int64_t plane = static_cast<int64_t>(sizes.height) * sizes.width;
  for (int64_t i = first_thread(); i < count; i += all_threads()) {
    const OutputIndex at(i, sizes.channels, sizes.pooled);
    const A* roi = rois + at.roi * 5;
    if (argmax[i] < 0 || argmax[i] >= plane || !is_valid_roi(roi, sizes.images)) continue;
    const int64_t first = (static_cast<int64_t>(roi[0]) * sizes.channels + at.channel) * plane;
    grad_input.add(first + argmax[i], static_cast<A>(grad_output[i]));
  }
}

}  // namespace dcn_det
