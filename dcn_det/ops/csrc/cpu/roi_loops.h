// What the RoI pooling kernels for the CPU share.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "common/tensor_ops.h"
#include "cpu/vectorize.h"

namespace dcn_det {

// The smallest number of items worth a thread of its own, when one costs about `item_work` multiplications.
inline int64_t grain(int64_t item_work) {
  return std::max<int64_t>(1, 32768 / std::max<int64_t>(1, item_work));
}

// out[column * out_stride + row] = in[row * in_stride + column]
struct TransposeMatrix {
  template <typename T>
  DCN_DET_INLINE static void run(const T* in, int64_t in_stride, int64_t rows, int64_t columns, T* out,
                                 int64_t out_stride) {
    const int64_t whole_rows = rows / 4 * 4, whole_columns = columns / 4 * 4;
    for (int64_t column = 0; column < whole_columns; column += 4) {
      // The processor does not fetch ahead for so many rows in as many pages.
      if (column % 16 == 0 && in_stride >= 1024)
        for (int64_t row = 0; row < whole_rows; ++row) __builtin_prefetch(in + row * in_stride + column + 64);
      for (int64_t row = 0; row < whole_rows; row += 4)
        transpose_block(in + row * in_stride + column, in_stride, out + column * out_stride + row,
                        out_stride);
    }
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t column = row < whole_rows ? whole_columns : 0; column < columns; ++column)
        out[column * out_stride + row] = in[row * in_stride + column];
  }

 private:
  // In registers, which compilers do not find in loops.
  template <typename T>
  DCN_DET_INLINE static void transpose_block(const T* in, int64_t in_stride, T* out, int64_t out_stride) {
    typedef T Vector __attribute__((vector_size(4 * sizeof(T))));
    Vector a, b, c, d;
    std::memcpy(&a, in, sizeof(Vector));
    std::memcpy(&b, in + in_stride, sizeof(Vector));
    std::memcpy(&c, in + 2 * in_stride, sizeof(Vector));
    std::memcpy(&d, in + 3 * in_stride, sizeof(Vector));
    const Vector ac_low = __builtin_shufflevector(a, c, 0, 4, 1, 5);
    const Vector ac_high = __builtin_shufflevector(a, c, 2, 6, 3, 7);
    const Vector bd_low = __builtin_shufflevector(b, d, 0, 4, 1, 5);
    const Vector bd_high = __builtin_shufflevector(b, d, 2, 6, 3, 7);
    const Vector first = __builtin_shufflevector(ac_low, bd_low, 0, 4, 1, 5);
    const Vector second = __builtin_shufflevector(ac_low, bd_low, 2, 6, 3, 7);
    const Vector third = __builtin_shufflevector(ac_high, bd_high, 0, 4, 1, 5);
    const Vector fourth = __builtin_shufflevector(ac_high, bd_high, 2, 6, 3, 7);
    std::memcpy(out, &first, sizeof(Vector));
    std::memcpy(out + out_stride, &second, sizeof(Vector));
    std::memcpy(out + 2 * out_stride, &third, sizeof(Vector));
    std::memcpy(out + 3 * out_stride, &fourth, sizeof(Vector));
  }
};

}  // namespace dcn_det
