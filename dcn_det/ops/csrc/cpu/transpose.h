// Copies between (N, C, H, W) and (N, H, W, C) memory, several times faster than PyTorch's general one.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>

#include "common/tensor_ops.h"
#include "cpu/vectorize.h"

namespace dcn_det {

constexpr int64_t kTransposeBlock = 16;  // 16 x 16 elements fit in a few cache lines of either side

// out[column][row] = in[row][column] for the rows [begin, end) of a (rows, columns) matrix.
struct TransposeRows {
  template <typename T>
  DCN_DET_INLINE static void run(T* out, const T* in, int64_t rows, int64_t columns, int64_t begin,
                                 int64_t end) {
    for (int64_t first = 0; first < columns; first += kTransposeBlock) {
      const int64_t last = std::min(first + kTransposeBlock, columns);
      if (last - first == kTransposeBlock && end - begin == kTransposeBlock) {
        for (int64_t column = first; column < first + kTransposeBlock; ++column) {
          for (int64_t row = 0; row < kTransposeBlock; ++row) {
            out[column * rows + begin + row] = in[(begin + row) * columns + column];
          }
        }
      } else {
        for (int64_t column = first; column < last; ++column) {
          for (int64_t row = begin; row < end; ++row) out[column * rows + row] = in[row * columns + column];
        }
      }
    }
  }
};

template <typename T>
void transpose(T* out, const T* in, int64_t batch, int64_t rows, int64_t columns) {
  const int64_t blocks = (rows + kTransposeBlock - 1) / kTransposeBlock;
  const int64_t grain = std::max<int64_t>(32768 / (kTransposeBlock * columns), 1);
  torch::stable::parallel_for(0, batch * blocks, grain, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t begin = i % blocks * kTransposeBlock, offset = i / blocks * rows * columns;
      vectorized<TransposeRows>(out + offset, in + offset, rows, columns, begin,
                                std::min(begin + kTransposeBlock, rows));
    }
  });
}

// A contiguous copy of a 4-dimensional tensor, or the tensor itself if it is contiguous.
inline Tensor dense_copy(const Tensor& self) {
  if (self.is_contiguous() || self.numel() == 0) return torch::stable::contiguous(self);
  const int64_t batch = self.size(0), a = self.size(1), b = self.size(2), c = self.size(3);
  const bool from_channels_first = self.stride(0) == a * b * c && self.stride(1) == b &&
                                   self.stride(2) == 1 &&
                                   self.stride(3) == a * b;  // (batch, height, width, channels)
  const bool from_channels_last = self.stride(0) == a * b * c && self.stride(1) == 1 &&
                                  self.stride(2) == c * a &&
                                  self.stride(3) == a;  // (batch, channels, height, width)
  if (!from_channels_first && !from_channels_last) return torch::stable::contiguous(self);
  const Tensor out = torch::stable::new_empty(self, self.sizes());
  const int64_t rows = from_channels_first ? c : b * c, columns = from_channels_first ? a * b : a;
  dispatch_floating(self.scalar_type(), "transpose", [&]<typename T>() {
    transpose(out.mutable_data_ptr<T>(), self.const_data_ptr<T>(), batch, rows, columns);
  });
  return out;
}

}  // namespace dcn_det
