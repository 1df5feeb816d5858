// The cells that the samples of a bin read, a few neighbors per axis, so that a thread holds their weights in
// registers and has all their loads in flight at once. Free of torch.
#pragma once

#include "cuda/sums.cuh"

namespace dcn_det {

// Cells per axis. Samples that span 3 cells always fit: bins of 4 cells for 4 samples per bin, regions of 448
// pixels for 7 bins at stride 16. A window of 4 would end at 300 pixels, and one of 6 has 11 more pairs of
// cells that hardly any bin needs.
constexpr int kWindow = 5;

// One axis: sums of interpolation weights per cell, and of their derivatives with respect to the position.
// All indices are known when the loops are unrolled: an array with other indices would lie in memory.
template <typename A>
struct CellWindow {
  int first = 0, samples = 0;
  int place = 0, last = 0;  // of the last sample's lower and upper cell, relative to the first cell
  A weight[kWindow] = {}, slope[kWindow] = {};

  // Otherwise cells are missing: the samples span more, or come in decreasing order.
  __device__ __forceinline__ bool fits() const { return place >= 0 && last < kWindow; }

  // Samples come in order, and the sums round as those of CellWalker.
  __device__ __forceinline__ void add(A position) {
    const int lower = static_cast<int>(position);
    const A fraction = position - static_cast<A>(lower);
    if (samples == 0) first = lower;
    ++samples;
    const bool between = fraction > A(0);
    place = lower - first;
    last = between ? place + 1 : place;
#pragma unroll
    for (int k = 0; k < kWindow; ++k) {
      if (place == k) {
        weight[k] += A(1) - fraction;
        if (between) slope[k] -= A(1);
        if (k + 1 < kWindow) {
          weight[k + 1] += fraction;
          if (between) slope[k + 1] += A(1);
        }
      }
    }
  }
};

// A cell without weight is not read, as it may be infinite or lie outside the map.
template <typename A>
__device__ __forceinline__ bool reads(const CellWindow<A>& rows, int row, const CellWindow<A>& columns,
                                      int column) {
  return rows.weight[row] > A(0) && columns.weight[column] > A(0);
}

// The cells of a plane in a pair of windows that fit; 0 for those that are not read.
template <typename A>
struct CellValues {
  A at[kWindow][kWindow];

  template <typename T>
  __device__ __forceinline__ CellValues(const T* plane, int width, const CellWindow<A>& rows,
                                        const CellWindow<A>& columns) {
    const T* first = plane + int64_t(rows.first) * width + columns.first;
#pragma unroll
    for (int j = 0; j < kWindow; ++j) {
#pragma unroll
      for (int k = 0; k < kWindow; ++k)
        at[j][k] = reads(rows, j, columns, k) ? static_cast<A>(first[j * width + k]) : A(0);
    }
  }

  __device__ __forceinline__ A weighted(const CellWindow<A>& rows, const CellWindow<A>& columns) const {
    A sum = 0;
#pragma unroll
    for (int j = 0; j < kWindow; ++j) {
      A row_sum = 0;
#pragma unroll
      for (int k = 0; k < kWindow; ++k) row_sum += columns.weight[k] * at[j][k];
      sum += rows.weight[j] * row_sum;
    }
    return sum;
  }
};

// Adds grad * weight to the cells of a plane in a pair of windows that fit. A sum of `count` values has all
// planes, and its memory is aligned. A row of cells lies in one or two groups of 4 neighbors, and adding a
// group takes as long as adding one value.
template <typename A, typename Sums>
__device__ __forceinline__ void add_to_cells(const Sums& sums, int64_t count, int64_t plane, int width,
                                             A grad, const CellWindow<A>& rows,
                                             const CellWindow<A>& columns) {
  constexpr int group = Sums::kWidth;
  const int64_t first = plane + int64_t(rows.first) * width + columns.first;
#pragma unroll
  for (int j = 0; j < kWindow; ++j) {
    if (!(rows.weight[j] > A(0))) continue;
    const A row_grad = grad * rows.weight[j];
    const int64_t row = first + j * width;
    const int shift = static_cast<int>(row % group);
    const int64_t start = row - shift;
    const bool two = shift + columns.last >= group;
    if (group > 1 && start + (two ? 2 : 1) * group <= count) {
      A cells[2][group] = {};
#pragma unroll
      for (int k = 0; k < kWindow; ++k) {
        // Not 0 * grad, which may be NaN, for cells that are not read.
        const A value = columns.weight[k] > A(0) ? row_grad * columns.weight[k] : A(0);
#pragma unroll
        for (int s = 0; s < group; ++s)
          if (shift == s) cells[(s + k) / group % 2][(s + k) % group] = value;
      }
      sums.add(start, cells[0]);
      if (two) sums.add(start + group, cells[1]);
    } else {
#pragma unroll
      for (int k = 0; k < kWindow; ++k)
        if (columns.weight[k] > A(0)) sums.add(row + k, row_grad * columns.weight[k]);
    }
  }
}

}  // namespace dcn_det
