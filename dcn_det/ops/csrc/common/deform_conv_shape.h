// Shapes and samples of the deformable convolution, as kernels see them; free of torch.
#pragma once

#include <cstdint>

#include "common/bilinear.h"
#include "common/division.h"

namespace dcn_det {

// Features are stored as (batch, height, width, channels). Columns, the sampled features that are multiplied
// by the weights, are stored as (groups, rows, taps, channels / groups), one row per output position.
struct DeformConvShape {
  int64_t batch;
  int channels, height, width;
  int out_channels, out_height, out_width;
  int kernel_height, kernel_width;
  int stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x;
  int groups, offset_groups;
  Border border;

  DCN_DET_INLINE int taps() const { return kernel_height * kernel_width; }
  DCN_DET_INLINE int group_channels() const { return channels / groups; }
  DCN_DET_INLINE int offset_group_channels() const { return channels / offset_groups; }
  DCN_DET_INLINE int64_t cells() const { return static_cast<int64_t>(height) * width; }
  DCN_DET_INLINE int64_t out_cells() const { return static_cast<int64_t>(out_height) * out_width; }
  DCN_DET_INLINE int64_t positions() const { return batch * out_cells(); }
};

// A (batch, channels, out_height, out_width) tensor whose last two dimensions are dense.
template <typename A>
struct Planes {
  A* data;
  int64_t image_stride, channel_stride, cell_stride;

  DCN_DET_INLINE A& at(int64_t image, int64_t channel, int64_t cell) const {
    return data[image * image_stride + channel * channel_stride + cell * cell_stride];
  }
};

// Columns of a tile.
template <typename T>
struct Columns {
  T* data;
  int64_t group_stride, row_stride;
  int groups, group_channels;

  // The element of a channel, counted over the whole map.
  DCN_DET_INLINE T* at(int64_t row, int tap, int channel) const {
    const int group = groups == 1 ? 0 : channel / group_channels;
    return data + group * group_stride + row * row_stride + tap * group_channels +
           (channel - group * group_channels);
  }
};

// The position read by one tap of one output position, for the channels of one offset group.
template <typename A>
struct Sample {
  Axis<A> y, x;
  A modulation;  // factor of the mask
  bool inside;   // if false, the value and all gradients are 0

  DCN_DET_INLINE int64_t cell(int corner, int width) const {
    return static_cast<int64_t>(y.cell[corner >> 1]) * width + x.cell[corner & 1];
  }
  DCN_DET_INLINE A weight(int corner) const { return y.weight[corner >> 1] * x.weight[corner & 1]; }
  DCN_DET_INLINE A slope_y(int corner) const { return y.slope[corner >> 1] * x.weight[corner & 1]; }
  DCN_DET_INLINE A slope_x(int corner) const { return y.weight[corner >> 1] * x.slope[corner & 1]; }
};

// Offsets are interleaved (y, x) for each tap; mask.data is null without a mask.
template <typename A>
DCN_DET_INLINE Sample<A> sample_at(const DeformConvShape& shape, const Planes<const A>& offset,
                                   const Planes<const A>& mask, int64_t image, int64_t cell, int offset_group,
                                   int tap) {
  const int64_t channel = static_cast<int64_t>(offset_group) * shape.taps() + tap;
  const Division at = divide(cell, shape.out_width);
  const int row = static_cast<int>(at.quotient), column = static_cast<int>(at.remainder);
  const int from_y = row * shape.stride_y - shape.padding_y + tap / shape.kernel_width * shape.dilation_y;
  const int from_x = column * shape.stride_x - shape.padding_x + tap % shape.kernel_width * shape.dilation_x;
  const A y = A(from_y) + offset.at(image, 2 * channel, cell);
  const A x = A(from_x) + offset.at(image, 2 * channel + 1, cell);
  Sample<A> sample;
  sample.inside = reads_map(shape.border, y, shape.height) && reads_map(shape.border, x, shape.width);
  if (sample.inside) {
    sample.y = axis_at(shape.border, y, shape.height);
    sample.x = axis_at(shape.border, x, shape.width);
    sample.modulation = mask.data == nullptr ? A(1) : mask.at(image, channel, cell);
  }
  return sample;
}

// Output positions per tile: as many as fit in `bytes`, with `row_bytes` per position. Tiles have about equal
// size, and their number, if larger, is divisible by `multiple`. It does not depend on the machine's number
// of threads, because the rounding of a product may depend on its number of rows.
inline int64_t tile_rows(const DeformConvShape& shape, int64_t row_bytes, int64_t bytes, int64_t multiple) {
  const int64_t most = bytes / row_bytes < 32 ? 32 : bytes / row_bytes;
  int64_t tiles = shape.positions() < most ? 1 : (shape.positions() + most - 1) / most;
  if (tiles > multiple) tiles = (tiles + multiple - 1) / multiple * multiple;
  const int64_t rows = (shape.positions() + tiles - 1) / tiles;
  return rows < 1 ? 1 : rows;
}

inline int64_t tile_count(const DeformConvShape& shape, int64_t rows) {
  return (shape.positions() + rows - 1) / rows;
}

}  // namespace dcn_det
