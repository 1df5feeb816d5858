// Transposes matrices through shared memory, so that both reads and writes go along rows. Free of torch.
#pragma once

#include "cuda/grid.cuh"

namespace dcn_det {

constexpr int kTile = kWarp;  // rows and columns that a block transposes at a time
constexpr int kStrip = 128;  // the longer side of what it transposes if the other side is shorter than a tile

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

// The same if matrices have few columns, or few rows: their longer sides are divided into strips, which are
// contiguous on the side of the many short rows.
template <typename T, bool few_columns>
__global__ void __launch_bounds__(kThreads)
    transpose_strips_kernel(const T* __restrict__ in, T* __restrict__ out, int64_t batch, int64_t length,
                            int width) {
  __shared__ T strip[kStrip * kTile];
  const int64_t strips = (length + kStrip - 1) / kStrip;
  for (int64_t i = blockIdx.x; i < batch * strips; i += gridDim.x) {
    const Division by_strip = divide(i, strips);
    const int64_t matrix = by_strip.quotient * length * width, start = by_strip.remainder * kStrip;
    const int count = static_cast<int>(length - start < kStrip ? length - start : kStrip);
    const auto across = [&](const auto& move) {  // along the long rows
      for (int k = static_cast<int>(threadIdx.x); k < kStrip * width; k += kThreads) {
        const int at = k % kStrip, row = k / kStrip;
        if (at < count) move(matrix + row * length + start + at, at * width + row);
      }
    };
    const auto along = [&](const auto& move) {
      for (int k = static_cast<int>(threadIdx.x); k < count * width; k += kThreads)
        move(matrix + start * width + k, k);
    };
    const auto read = [&](int64_t place, int k) { strip[k] = in[place]; };
    const auto write = [&](int64_t place, int k) { out[place] = strip[k]; };
    if constexpr (few_columns) {
      along(read);
      __syncthreads();
      across(write);
    } else {
      across(read);
      __syncthreads();
      along(write);
    }
    __syncthreads();
  }
}

// Transposes matrices with calls of launch(number of threads, kernel, arguments...).
template <typename T, typename Launch>
void launch_transpose(const T* in, T* out, int64_t batch, int64_t rows, int64_t columns,
                      const Launch& launch) {
  const auto parts = [](int64_t size, int part) { return (size + part - 1) / part; };
  if (columns < kTile) {
    launch(batch * parts(rows, kStrip) * kThreads, &transpose_strips_kernel<T, true>, in, out, batch, rows,
           static_cast<int>(columns));
  } else if (rows < kTile) {
    launch(batch * parts(columns, kStrip) * kThreads, &transpose_strips_kernel<T, false>, in, out, batch,
           columns, static_cast<int>(rows));
  } else {
    launch(batch * parts(rows, kTile) * parts(columns, kTile) * kThreads, &transpose_kernel<T>, in, out,
           batch, rows, columns);
  }
}

}  // namespace dcn_det
