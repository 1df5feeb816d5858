// CUDA kernels of position-sensitive RoI pooling: one thread per element of the output. Free of torch, so
// that a host compiler can compile them as well.
#pragma once

#include "common/psroi_pool.h"
#include "cuda/sums.cuh"

namespace dcn_det {

// Cells of a bin in the plane that it reads for an output channel. The area of an empty bin is 0.
template <typename A>
struct PsroiBin {
  CellRange rows, columns;
  int64_t plane, area;

  __device__ __forceinline__ PsroiBin(const PsroiSizes& sizes, const A* rois, A spatial_scale,
                                      const OutputIndex& at) {
    const Roi<A> roi = read_roi(rois + at.roi * 5, spatial_scale, A(0), sizes.images);
    rows = psroi_bin_cells(roi.y, roi.height, at.row, sizes.pooled, sizes.height);
    columns = psroi_bin_cells(roi.x, roi.width, at.column, sizes.pooled, sizes.width);
    area = roi.valid ? int64_t(rows.size()) * columns.size() : 0;
    plane = (roi.image * sizes.input_channels() + sizes.source_channel(at.channel, at.row, at.column)) *
            sizes.height * sizes.width;
  }
};

// Bins are read in blocks of so many rows and columns, whose loads are in flight at once. Most have one
// block.
constexpr int kPsroiBlock = 4;

template <typename T, typename A>
__global__ void __launch_bounds__(kThreads) psroi_pool_kernel(PsroiSizes sizes, const T* __restrict__ input,
                                                              const A* rois, A spatial_scale, T* output) {
  const int64_t count = sizes.rois * sizes.output_dim * sizes.bins();
  for (int64_t i = first_thread(); i < count; i += all_threads()) {
    const PsroiBin<A> bin(sizes, rois, spatial_scale, OutputIndex(i, sizes.output_dim, sizes.pooled));
    A sum = 0;
    if (bin.area > 0)
      for (int top = bin.rows.begin; top < bin.rows.end; top += kPsroiBlock)
        for (int left = bin.columns.begin; left < bin.columns.end; left += kPsroiBlock) {
          const T* first = input + bin.plane + int64_t(top) * sizes.width + left;
#pragma unroll
          for (int y = 0; y < kPsroiBlock; ++y) {
#pragma unroll
            for (int x = 0; x < kPsroiBlock; ++x)
              sum += top + y < bin.rows.end && left + x < bin.columns.end
                         ? static_cast<A>(first[y * sizes.width + x])
                         : A(0);
          }
        }
    output[i] = static_cast<T>(bin.area > 0 ? sum / static_cast<A>(bin.area) : A(0));
  }
}

// Bins share cells, so that additions are atomic.
template <typename T, typename A, typename Sums>
__global__ void __launch_bounds__(kThreads)
    psroi_pool_grad_input_kernel(PsroiSizes sizes, const T* grad_output, const A* rois, A spatial_scale,
                                 Sums input_sums) {
  const auto grad_input = input_sums.adder();
  const int64_t count = sizes.rois * sizes.output_dim * sizes.bins();
  for (int64_t i = first_thread(); i < count; i += all_threads()) {
    const PsroiBin<A> bin(sizes, rois, spatial_scale, OutputIndex(i, sizes.output_dim, sizes.pooled));
    if (bin.area == 0) continue;
    const A share = static_cast<A>(grad_output[i]) / static_cast<A>(bin.area);
    for (int y = bin.rows.begin; y < bin.rows.end; ++y)
      for (int x = bin.columns.begin; x < bin.columns.end; ++x)
        grad_input.add(bin.plane + int64_t(y) * sizes.width + x, share);
  }
}

}  // namespace dcn_det
