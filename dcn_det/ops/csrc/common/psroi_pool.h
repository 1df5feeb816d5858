// Position-sensitive RoI pooling: the channel that feeds a bin, and the whole cells that a bin covers.
#pragma once

#include "common/roi.h"

namespace dcn_det {

// Channel (o * group + group_row) * group + group_column of the input feeds output channel o.
struct PsroiSizes {
  int64_t images, rois, output_dim;
  int height, width, group, pooled;

  DCN_DET_INLINE int64_t bins() const { return int64_t(pooled) * pooled; }
  DCN_DET_INLINE int64_t input_channels() const { return output_dim * group * group; }
  DCN_DET_INLINE int64_t input_size() const {
    return images * input_channels() * height * static_cast<int64_t>(width);
  }
  DCN_DET_INLINE int64_t source_channel(int64_t output_channel, int row, int column) const {
    return (output_channel * group + part_of_bin(row, pooled, group)) * group +
           part_of_bin(column, pooled, group);
  }
};

// The cells that a bin touches along one axis.
template <typename T>
DCN_DET_INLINE CellRange psroi_bin_cells(T origin, T extent, int bin, int bins, int size) {
  const T bin_extent = extent / static_cast<T>(bins);
  return touched_cells(rounded_product(static_cast<T>(bin), bin_extent) + origin,
                       rounded_product(static_cast<T>(bin + 1), bin_extent) + origin, size);
}

}  // namespace dcn_det
