// How the CPU lays out a deformable position-sensitive RoI pooling: the cells that a bin reads, and the order
// of work.
//
// Two layouts. With one group of bins, all channels of a class read the same cells: the map is channels-last
// and the loops run over channels. Otherwise every bin reads planes of its own: the map is contiguous and
// each plane is read cell by cell. The work is cut into blocks of channels whose size depends on shapes
// alone, and every sum is made by one thread in a fixed order, so the number of threads does not change a
// bit.
#pragma once

#include <optional>
#include <vector>

#include "common/roi_arguments.h"
#include "cpu/roi_loops.h"

namespace dcn_det {

// The cells of one axis, as offsets into the map.
template <typename T>
struct Cells {
  std::vector<int64_t> offset;
  std::vector<T> weight, slope;
  int size = 0, counted = 0;

  explicit Cells(int samples) : offset(2 * samples), weight(2 * samples), slope(2 * samples) {}

  void read(const SampleAxis<T>& axis, int64_t stride) {
    int begin = 0, end = axis.samples;
    while (begin < end && !axis.counts(axis.position(begin))) ++begin;
    while (begin < end && !axis.counts(axis.position(end - 1))) --end;
    counted = end - begin;
    size = 0;
    if (counted == 0) return;
    if (axis.step > T(1))
      read_sparse(axis, stride);
    else
      read_dense(axis, begin, end, stride);
  }

 private:
  // Neighbouring samples share cells and no cell between two of them is left out: adds up in place.
  void read_dense(const SampleAxis<T>& axis, int begin, int end, int64_t stride) {
    const int first = static_cast<int>(axis.clamp(axis.position(begin)));
    size = static_cast<int>(axis.clamp(axis.position(end - 1))) - first + 2;
    for (int i = 0; i < size; ++i) {
      offset[i] = (first + i) * stride;
      weight[i] = slope[i] = 0;
    }
    for (int i = begin; i < end; ++i) {
      const T position = axis.clamp(axis.position(i));
      const int lower = static_cast<int>(position);
      const T fraction = position - static_cast<T>(lower);
      const T inside = fraction > 0 ? T(1) : T(0);
      weight[lower - first] += T(1) - fraction;
      weight[lower - first + 1] += fraction;
      slope[lower - first] -= inside;
      slope[lower - first + 1] += inside;
    }
    if (weight[size - 1] == 0) --size;
  }

  void read_sparse(const SampleAxis<T>& axis, int64_t stride) {
    CellWalker<T> walker(axis);
    for (CellSum<T> sum; walker.next(sum); ++size) {
      offset[size] = sum.cell * stride;
      weight[size] = sum.weight;
      slope[size] = sum.slope;
    }
  }
};

// Output channels [begin, end), all of one class.
struct Block {
  int64_t class_, begin, end;
  int64_t size() const { return end - begin; }
};

template <typename T>
struct DeformPsroiProblem {
  DeformPsroiSizes sizes;
  std::vector<Roi<T>> rois;
  bool channels_last;
  int64_t bins, class_stride;  // class_stride: from one class's offset planes to the next one's
  int64_t channel_stride;      // from one output channel's cells to the next one's

  DeformPsroiProblem(const DeformPsroiSizes& sizes, const Tensor& roi_rows,
                     const std::optional<Tensor>& trans, double spatial_scale, double trans_std)
      : sizes(sizes),
        channels_last(sizes.group == 1 && sizes.channels_per_class() >= kMinVectorChannels),
        bins(sizes.bins()),
        class_stride(2 * sizes.offset_plane()),
        trans_std_(static_cast<T>(trans_std)),
        offsets_(trans ? trans->const_data_ptr<T>() : nullptr) {
    const T* row = roi_rows.const_data_ptr<T>();
    for (int64_t r = 0; r < sizes.rois; ++r, row += 5) {
      rois.push_back(read_roi(row, static_cast<T>(spatial_scale), T(-0.5), sizes.images));
      columns_.emplace_back(rois[r].x, rois[r].width, sizes.pooled, sizes.samples);
      rows_.emplace_back(rois[r].y, rois[r].height, sizes.pooled, sizes.samples);
    }
    column_stride_ = channels_last ? sizes.input_channels() : 1;
    row_stride_ = column_stride_ * sizes.width;
    const int64_t plane = channels_last ? 1 : row_stride_ * sizes.height;
    channel_stride = plane * sizes.group * sizes.group;
    for (int i = 0; i < sizes.pooled; ++i)
      for (int j = 0; j < sizes.pooled; ++j) {
        offset_of_bin.push_back(sizes.offset_index(0, 0, i, j));
        plane_of_bin_.push_back(sizes.source_channel(0, i, j) * plane);
      }
  }

  std::vector<int64_t> offset_of_bin;  // within the planes of a class

  MemoryFormat format() const {
    return channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
  }

  std::vector<Block> blocks(int64_t channels) const {
    std::vector<Block> list;
    const int64_t per_class = sizes.channels_per_class();
    for (int64_t u = 0; u < sizes.classes; ++u)
      for (int64_t begin = 0; begin < per_class; begin += channels)
        list.push_back({u, u * per_class + begin, u * per_class + std::min(begin + channels, per_class)});
    return list;
  }

  // Where the cells of an output channel's bin lie in the input.
  int64_t map_offset(int64_t image, int64_t output_channel, int64_t bin) const {
    return image * sizes.input_channels() * sizes.height * sizes.width + output_channel * channel_stride +
           plane_of_bin_[bin];
  }

  // Finds the cells of a bin. Gives the number of its samples that count.
  int read_bin(int64_t r, int64_t class_, int64_t bin, Cells<T>& y, Cells<T>& x) const {
    T offset_x = 0, offset_y = 0;
    if (offsets_ != nullptr) {
      const T* pair = offsets_ + (r * sizes.classes + class_) * class_stride + offset_of_bin[bin];
      offset_x = rounded_product(pair[0], trans_std_);
      offset_y = rounded_product(pair[sizes.offset_plane()], trans_std_);
    }
    const int row = static_cast<int>(bin) / sizes.pooled, column = static_cast<int>(bin) % sizes.pooled;
    x.read(SampleAxis<T>(columns_[r], column, offset_x, sizes.samples, sizes.width), column_stride_);
    y.read(SampleAxis<T>(rows_[r], row, offset_y, sizes.samples, sizes.height), row_stride_);
    return x.counted * y.counted;
  }

  // The derivative of a bin's position with respect to its offset.
  T offset_scale_x(int64_t r) const { return trans_std_ * rois[r].width; }
  T offset_scale_y(int64_t r) const { return trans_std_ * rois[r].height; }

 private:
  static constexpr int64_t kMinVectorChannels = 8;

  T trans_std_;
  const T* offsets_;
  int64_t row_stride_, column_stride_;
  std::vector<RoiAxis<T>> rows_, columns_;
  std::vector<int64_t> plane_of_bin_;
};

}  // namespace dcn_det
