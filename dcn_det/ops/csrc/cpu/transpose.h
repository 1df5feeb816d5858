// Matrix transposition, and copies between (N, C, H, W) and (N, H, W, C) memory, several times faster than
// PyTorch's general copy.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "common/tensor_ops.h"
#include "cpu/grain.h"
#include "cpu/vectorize.h"

namespace dcn_det {

// out[column * out_stride + row] = in[row * in_stride + column]
template <int kVectorBytes>
struct TransposeMatrix {
  template <typename T>
  DCN_DET_INLINE static void run(const T* in, int64_t in_stride, int64_t rows, int64_t columns, T* out,
                                 int64_t out_stride) {
    constexpr int64_t kLine = 64 / sizeof(T);
    constexpr bool kWide = kVectorBytes >= 8 * sizeof(T);
    const int64_t wide_rows = kWide ? rows / 8 * 8 : 0, whole_rows = rows / 4 * 4;
    const int64_t whole_columns = columns / 4 * 4;
    for (int64_t column = 0; column < whole_columns; column += 4) {
      // The hardware does not prefetch for so many rows in as many pages, nor for so many short writes.
      if (column % 16 == 0 && in_stride >= 1024)
        for (int64_t row = 0; row < whole_rows; ++row) __builtin_prefetch(in + row * in_stride + column + 64);
      for (int64_t ahead = column + 16; ahead < std::min(column + 20, columns); ++ahead)
        for (int64_t row = 0; row < rows; row += kLine) __builtin_prefetch(out + ahead * out_stride + row, 1);
      for (int64_t row = 0; row < wide_rows; row += 8)
        transpose_block<8>(in + row * in_stride + column, in_stride, out + column * out_stride + row,
                           out_stride);
      for (int64_t row = wide_rows; row < whole_rows; row += 4)
        transpose_block<4>(in + row * in_stride + column, in_stride, out + column * out_stride + row,
                           out_stride);
    }
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t column = row < whole_rows ? whole_columns : 0; column < columns; ++column)
        out[column * out_stride + row] = in[row * in_stride + column];
  }

 private:
  // Transposes four columns in registers; compilers do not vectorize loops this way.
  template <int kRows, typename T>
  DCN_DET_INLINE static void transpose_block(const T* in, int64_t in_stride, T* out, int64_t out_stride) {
    typedef T Vector __attribute__((vector_size(kRows * sizeof(T))));
    Vector a, b, c, d;
    load_rows(in, in_stride, a);
    load_rows(in + in_stride, in_stride, b);
    load_rows(in + 2 * in_stride, in_stride, c);
    load_rows(in + 3 * in_stride, in_stride, d);
    interleave(a, c);
    interleave(b, d);
    interleave(a, b);
    interleave(c, d);
    const Vector columns[] = {a, b, c, d};
    for (int i = 0; i < 4; ++i) std::memcpy(out + i * out_stride, &columns[i], sizeof(Vector));
  }

  // Loads four values of a row; in vectors of eight, also four values of the fourth row below it.
  template <typename T, typename Vector>
  DCN_DET_INLINE static void load_rows(const T* in, int64_t in_stride, Vector& rows) {
    typedef T Half __attribute__((vector_size(4 * sizeof(T))));
    if constexpr (sizeof(Vector) == sizeof(Half)) {
      std::memcpy(&rows, in, sizeof(Half));
    } else {
      Half low, high;
      std::memcpy(&low, in, sizeof(Half));
      std::memcpy(&high, in + 4 * in_stride, sizeof(Half));
      rows = __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7);
    }
  }

  // Of every four values of both vectors, interleaves the first two into `low` and the last two into `high`.
  template <typename Vector>
  DCN_DET_INLINE static void interleave(Vector& low, Vector& high) {
    const Vector a = low, b = high;
    if constexpr (sizeof(Vector) == 4 * sizeof(a[0])) {
      low = __builtin_shufflevector(a, b, 0, 4, 1, 5);
      high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
    } else {
      low = __builtin_shufflevector(a, b, 0, 8, 1, 9, 4, 12, 5, 13);
      high = __builtin_shufflevector(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
    }
  }
};

template <typename T>
void transpose(T* out, const T* in, int64_t batch, int64_t rows, int64_t columns) {
  constexpr int64_t kBlock = 16;  // rows, so that whole cache lines are written
  const int64_t blocks = (rows + kBlock - 1) / kBlock;
  torch::stable::parallel_for(0, batch * blocks, grain(kBlock * columns), [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t begin = i % blocks * kBlock, offset = i / blocks * rows * columns;
      vectorized<TransposeMatrix>(in + offset + begin * columns, columns, std::min(kBlock, rows - begin),
                                  columns, out + offset + begin, rows);
    }
  });
}

// A contiguous copy of a 4-dimensional tensor, or the tensor itself if it is contiguous.
inline Tensor dense_copy(const Tensor& self) {
  if (self.is_contiguous()) return self;
  const int64_t batch = self.size(0), a = self.size(1), b = self.size(2), c = self.size(3);
  const bool from_channels_first = self.stride(0) == a * b * c && self.stride(1) == b &&
                                   self.stride(2) == 1 &&
                                   self.stride(3) == a * b;  // (batch, height, width, channels)
  const bool from_channels_last = self.stride(0) == a * b * c && self.stride(1) == 1 &&
                                  self.stride(2) == c * a &&
                                  self.stride(3) == a;  // (batch, channels, height, width)
  if (!from_channels_first && !from_channels_last) return dense(self);
  const Tensor out = uninitialized(self, self.sizes());
  const int64_t rows = from_channels_first ? c : b * c, columns = from_channels_first ? a * b : a;
  dispatch_floating(self.scalar_type(), "transpose", [&]<typename T>() {
    // Vector types require built-in element types.
    using Number = std::conditional_t<sizeof(T) == sizeof(uint16_t), uint16_t, T>;
    transpose(reinterpret_cast<Number*>(out.mutable_data_ptr<T>()),
              reinterpret_cast<const Number*>(self.const_data_ptr<T>()), batch, rows, columns);
  });
  return out;
}

}  // namespace dcn_det
