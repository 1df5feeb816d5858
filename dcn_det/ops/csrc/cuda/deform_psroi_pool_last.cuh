// CUDA kernels of deformable RoI pooling for maps without position-sensitive channels (group 1) in
// channels-last memory: lanes share a bin's contiguous channels and locate its samples once. Free of torch.
#pragma once

#include "cuda/deform_psroi_pool.cuh"
#include "cuda/lanes.cuh"

namespace dcn_det {

// Features are (images, height, width, output_dim); N divides the channels of a class.
template <typename T, typename A, int N>
__global__ void __launch_bounds__(kThreads)
    deform_psroi_pool_last_kernel(DeformPsroiSizes sizes, DeformPsroiRegions<A> regions,
                                  const T* __restrict__ features, T* output, int lanes) {
  const Share share(static_cast<int>(threadIdx.x % kWarp), lanes);
  const int64_t count = sizes.rois * sizes.classes * sizes.bins(), per_class = sizes.channels_per_class();
  for (int64_t i = first_thread() / lanes; i < count; i += all_threads() / lanes) {
    const OutputIndex at(i, sizes.classes, sizes.pooled);  // `channel` is a class
    const DeformPsroiBin<A> bin(sizes, regions, at.roi, at.channel, at.row, at.column);
    const int64_t begin = at.channel * per_class;
    const T* image = features + bin.roi.image * sizes.height * sizes.width * sizes.output_dim + begin;
    for (int64_t c = share.lane * N; c < per_class; c += lanes * N) {
      A sum[N] = {};
      if (bin.scale > A(0) && bin.fits()) {
#pragma unroll
        for (int y = 0; y < kWindow; ++y) {
          if (!(bin.rows.weight[y] > A(0))) continue;  // the same for all lanes of a bin
          const int64_t cell = int64_t(bin.rows.first + y) * sizes.width + bin.columns.first;
          const T* first = image + cell * sizes.output_dim + c;
          A row_sum[N] = {};
#pragma unroll
          for (int x = 0; x < kWindow; ++x) {
            if (!reads(bin.rows, y, bin.columns, x)) continue;
            const Pack<T, N> values = load<N>(first + x * sizes.output_dim);
#pragma unroll
            for (int j = 0; j < N; ++j) row_sum[j] += bin.columns.weight[x] * static_cast<A>(values.at[j]);
          }
#pragma unroll
          for (int j = 0; j < N; ++j) sum[j] += bin.rows.weight[y] * row_sum[j];
        }
      } else if (bin.scale > A(0)) {
        CellWalker<A> rows(bin.y);
        for (CellSum<A> row; rows.next(row);) {
          A row_sum[N] = {};
          CellWalker<A> columns(bin.x);
          for (CellSum<A> column; columns.next(column);) {
            const int64_t cell = int64_t(row.cell) * sizes.width + column.cell;
            const Pack<T, N> values = load<N>(image + cell * sizes.output_dim + c);
#pragma unroll
            for (int j = 0; j < N; ++j) row_sum[j] += column.weight * static_cast<A>(values.at[j]);
          }
#pragma unroll
          for (int j = 0; j < N; ++j) sum[j] += row.weight * row_sum[j];
        }
      }
      T* out = output + ((at.roi * sizes.output_dim + begin + c) * sizes.pooled + at.row) * sizes.pooled +
               at.column;
#pragma unroll
      for (int j = 0; j < N; ++j) out[j * sizes.bins()] = static_cast<T>(bin.scale * sum[j]);
    }
  }
}

// Computes both gradients, except those whose pointer is null. Lanes share the channels of all bins that read
// a pair of offsets, and sum the gradients of the offsets in a fixed order.
template <typename T, typename A, int N, typename Sums>
__global__ void __launch_bounds__(kThreads)
    deform_psroi_pool_last_backward_kernel(DeformPsroiSizes sizes, DeformPsroiRegions<A> regions,
                                           const T* __restrict__ features, const T* __restrict__ grad_output,
                                           Sums feature_sums, A* grad_offset, int lanes) {
  const auto grad_features = feature_sums.adder();
  const Share share(static_cast<int>(threadIdx.x % kWarp), lanes);
  const int64_t pairs = sizes.rois * sizes.classes * sizes.offset_plane(),
                per_class = sizes.channels_per_class();
  const int64_t step = all_threads() / kWarp * share.groups;
  // All lanes of a warp leave the loop together, because the sum needs them.
  for (int64_t base = first_thread() / kWarp * share.groups; base < pairs; base += step) {
    const bool active = base + share.group < pairs;
    const OutputIndex at(active ? base + share.group : 0, sizes.classes, sizes.part);
    const int64_t begin = at.channel * per_class;
    const int top = first_bin_of_part(at.row, sizes.part, sizes.pooled);
    const int bottom = active ? first_bin_of_part(at.row + 1, sizes.part, sizes.pooled) : top;
    const int left = first_bin_of_part(at.column, sizes.part, sizes.pooled);
    const int right = first_bin_of_part(at.column + 1, sizes.part, sizes.pooled);
    A grad_x = 0, grad_y = 0;
    for (int row = top; row < bottom; ++row) {
      for (int column = left; column < right; ++column) {
        const DeformPsroiBin<A> bin(sizes, regions, at.roi, at.channel, row, column);
        if (bin.scale == A(0)) continue;
        const int64_t image = bin.roi.image * sizes.height * sizes.width * sizes.output_dim + begin;
        A move_x = 0, move_y = 0;
        for (int64_t c = share.lane * N; c < per_class; c += lanes * N) {
          const T* from = grad_output +
                          ((at.roi * sizes.output_dim + begin + c) * sizes.pooled + row) * sizes.pooled +
                          column;
          A grad[N];
#pragma unroll
          for (int j = 0; j < N; ++j) grad[j] = bin.scale * static_cast<A>(from[j * sizes.bins()]);
          // Adds what a cell contributes, given its factors of the row and of the column.
          A row_sum = 0, row_slope = 0;
          const auto visit = [&](int64_t cell, A y_weight, A x_weight, A x_slope) {
            const int64_t place = image + cell * sizes.output_dim + c;
            if (grad_offset != nullptr) {
              const Pack<T, N> values = load<N>(features + place);
              A product = 0;
#pragma unroll
              for (int j = 0; j < N; ++j) product += grad[j] * static_cast<A>(values.at[j]);
              row_sum += x_weight * product;
              row_slope += x_slope * product;
            }
            if (grad_features.wanted()) {
              A terms[N];
#pragma unroll
              for (int j = 0; j < N; ++j) terms[j] = grad[j] * y_weight * x_weight;
              grad_features.add(place, terms);
            }
          };
          CellWalker<A> rows(bin.y);
          for (CellSum<A> y; rows.next(y);) {
            row_sum = row_slope = 0;
            const int64_t first = int64_t(y.cell) * sizes.width;
            if (bin.columns.fits()) {
#pragma unroll
              for (int x = 0; x < kWindow; ++x)
                if (bin.columns.weight[x] > A(0))
                  visit(first + bin.columns.first + x, y.weight, bin.columns.weight[x], bin.columns.slope[x]);
            } else {
              CellWalker<A> columns(bin.x);
              for (CellSum<A> x; columns.next(x);) visit(first + x.cell, y.weight, x.weight, x.slope);
            }
            move_x += y.weight * row_slope;
            move_y += y.slope * row_sum;
          }
        }
        grad_x += move_x * bin.roi.width * regions.offset_std;
        grad_y += move_y * bin.roi.height * regions.offset_std;
      }
    }
    if (grad_offset == nullptr) continue;
    grad_x = sum_over_lanes(grad_x, lanes);
    grad_y = sum_over_lanes(grad_y, lanes);
    if (share.lane == 0 && active) {
      A* target = grad_offset + (at.roi * sizes.classes + at.channel) * 2 * sizes.offset_plane() +
                  static_cast<int64_t>(at.row) * sizes.part + at.column;
      target[0] = grad_x;
      target[sizes.offset_plane()] = grad_y;
    }
  }
}

}  // namespace dcn_det
