// Transposes matrices through shared memory, so that both reads and writes go along rows. Free of torch.
#pragma once

#include "cuda/grid.cuh"

namespace dcn_det {

constexpr int kTile = kWarp;  // rows and columns that a block transposes at a time

inline int64_t transpose_blocks(int64_t batch, int64_t rows, int64_t columns) {
  return batch * ((rows + kTile - 1) / kTile) * ((columns + kTile - 1) / kTile);
}

// Calls body.operator()<Element>() with the integer type of 2, 4 or 8 bytes; returns whether there is one.
template <typename Body>
bool dispatch_size(int64_t bytes, const Body& body) {
  switch (bytes) {
    case 2:
      body.template operator()<uint16_t>();
      return true;
    case 4:
      body.template operator()<uint32_t>();
      return true;
    case 8:
      body.template operator()<uint64_t>();
      return true;
    default:
      return false;
  }
}

// out[b][column][row] = in[b][row][column] for `batch` matrices of (rows, columns).
template <typename T>
__global__ void __launch_bounds__(kThreads) transpose_kernel(const T* __restrict__ in, T* __restrict__ out,
                                                             int64_t batch, int64_t rows, int64_t columns) {
  // One unused column, so that a warp that reads along a column accesses every bank once.
  __shared__ T tile[kTile][kTile + 1];
  const int x = static_cast<int>(threadIdx.x % kTile), y = static_cast<int>(threadIdx.x / kTile);
  const int64_t across = (columns + kTile - 1) / kTile, down = (rows + kTile - 1) / kTile;
  for (int64_t i = blockIdx.x; i < batch * across * down; i += gridDim.x) {
    const Division by_column = divide(i, across), by_row = divide(by_column.quotient, down);
    const int64_t row = by_row.remainder * kTile, column = by_column.remainder * kTile;
    const int64_t first = by_row.quotient * rows * columns;
    for (int j = y; j < kTile; j += kWarps)
      if (row + j < rows && column + x < columns) tile[j][x] = in[first + (row + j) * columns + column + x];
    __syncthreads();
    for (int j = y; j < kTile; j += kWarps)
      if (column + j < columns && row + x < rows) out[first + (column + j) * rows + row + x] = tile[x][j];
    __syncthreads();
  }
}

}  // namespace dcn_det
