// How the CPU lays out a deformable position-sensitive RoI pooling.
//
// Where many output channels move together, their cells are found once and the loops run over channels
// (roi_tiles.h). Otherwise, as with offsets of each class, the loops run over regions (roi_lanes.h): one
// thread has the planes of a class to itself, and takes bin after bin, so that a plane stays in the cache
// while all regions read it. Either way every sum is made by one thread in an order that depends on shapes
// and regions alone: the number of threads does not change a bit.
#pragma once

#include <algorithm>
#include <optional>
#include <vector>

#include "common/roi_arguments.h"
#include "cpu/roi_lanes.h"
#include "cpu/roi_tiles.h"
#include "cpu/transpose.h"

namespace dcn_det {

template <typename T>
struct DeformPsroiProblem {
  DeformPsroiSizes sizes;
  std::vector<Roi<T>> rois;
  int64_t bins, class_stride;          // class_stride: from one class's offset planes to the next one's
  std::vector<int64_t> offset_of_bin;  // within the planes of a class
  const T *roi_rows, *offsets;         // offsets: null for none

  DeformPsroiProblem(const DeformPsroiSizes& sizes, const Tensor& roi_rows,
                     const std::optional<Tensor>& trans, double spatial_scale, double trans_std)
      : sizes(sizes),
        bins(sizes.bins()),
        class_stride(2 * sizes.offset_plane()),
        roi_rows(roi_rows.const_data_ptr<T>()),
        offsets(trans ? trans->const_data_ptr<T>() : nullptr),
        trans_std_(static_cast<T>(trans_std)) {
    for (int64_t r = 0; r < sizes.rois; ++r) {
      rois.push_back(read_roi(this->roi_rows + r * 5, static_cast<T>(spatial_scale), T(-0.5), sizes.images));
      columns_.emplace_back(rois[r].x, rois[r].width, sizes.pooled, sizes.samples);
      rows_.emplace_back(rois[r].y, rois[r].height, sizes.pooled, sizes.samples);
    }
    for (int i = 0; i < sizes.pooled; ++i)
      for (int j = 0; j < sizes.pooled; ++j) offset_of_bin.push_back(sizes.offset_index(0, 0, i, j));
  }

  bool over_channels() const { return sizes.channels_per_class() >= kMinTileChannels; }

  Tensor readable(const Tensor& map) const {
    return over_channels() ? readable_map(map, sizes) : dense_copy(map);
  }

  // Where the samples of a bin lie that is moved by these offsets.
  SampleAxis<T> columns(int64_t r, int bin, T offset) const {
    return {columns_[r], bin % sizes.pooled, rounded_product(offset, trans_std_), sizes.samples, sizes.width};
  }
  SampleAxis<T> rows(int64_t r, int bin, T offset) const {
    return {rows_[r], bin / sizes.pooled, rounded_product(offset, trans_std_), sizes.samples, sizes.height};
  }

  // The derivative of a bin's position with respect to its offset.
  T offset_scale_x(int64_t r) const { return trans_std_ * rois[r].width; }
  T offset_scale_y(int64_t r) const { return trans_std_ * rois[r].height; }

  // The cells of all bins, for loops over channels.
  CellPlan<T> plan() const {
    const int64_t work = bins * sizes.samples * 32;
    const auto list_axis = [](const SampleAxis<T>& axis, CellLists<T>& lists) {
      lists.open();
      int counted = 0;
      for (int i = 0; i < axis.samples; ++i) {
        const T position = axis.position(i);
        if (!axis.counts(position)) continue;
        ++counted;
        lists.add_sample(axis.clamp(position));
      }
      lists.divide(static_cast<T>(counted));
    };
    return CellPlan<T>(
        sizes, sizes.classes, true, roi_rows, work, [&](int64_t class_, int64_t r, CellLists<T>& lists) {
          const int64_t moved = (r * sizes.classes + class_) * class_stride;
          lists.reserve(2 * bins, 4);
          for (int bin = 0; bin < bins; ++bin) {
            const int64_t pair = moved + offset_of_bin[bin];
            const bool moves = offsets != nullptr;
            list_axis(rows(r, bin, moves ? offsets[pair + sizes.offset_plane()] : T(0)), lists);
            list_axis(columns(r, bin, moves ? offsets[pair] : T(0)), lists);
          }
        });
  }

 private:
  static constexpr int64_t kMinTileChannels = 8;

  T trans_std_;
  std::vector<RoiAxis<T>> rows_, columns_;
};

// Regions of one image, for loops over regions. A block that is not full repeats its last region.
struct LaneBlock {
  int64_t image, regions[kLanes];
  int active;
};

// Blocks of regions with bins of similar size: a block takes as long as its largest bins.
template <typename T>
std::vector<LaneBlock> lane_blocks(const DeformPsroiProblem<T>& problem) {
  const auto& rois = problem.rois;
  std::vector<int64_t> order;
  for (int64_t r = 0; r < problem.sizes.rois; ++r)
    if (rois[r].valid) order.push_back(r);
  const T bin_samples = static_cast<T>(problem.sizes.pooled * problem.sizes.samples);
  const auto columns_of = [&](int64_t r) {
    return std::ceil(rois[r].width / bin_samples * static_cast<T>(problem.sizes.samples - 1));
  };
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    if (rois[a].image != rois[b].image) return rois[a].image < rois[b].image;
    if (columns_of(a) != columns_of(b)) return columns_of(a) < columns_of(b);
    return rois[a].height < rois[b].height;
  });
  std::vector<LaneBlock> blocks;
  for (const int64_t r : order) {
    if (blocks.empty() || blocks.back().active == kLanes || blocks.back().image != rois[r].image)
      blocks.push_back({rois[r].image, {}, 0});
    LaneBlock& block = blocks.back();
    std::fill(block.regions + block.active++, block.regions + kLanes, r);
  }
  return blocks;
}

// Arrays (values of a region, lane) of a block, from and to tensors whose values of a region lie side by
// side.
template <typename T>
void load_lanes(const T* values, int64_t region_stride, int64_t count, const LaneBlock& block, T* lanes) {
  for (int l = 0; l < kLanes; ++l) {
    const T* from = values + block.regions[l] * region_stride;
    for (int64_t i = 0; i < count; ++i) lanes[i * kLanes + l] = from[i];
  }
}

template <typename T>
void store_lanes(const T* lanes, int64_t count, const LaneBlock& block, T* values, int64_t region_stride) {
  for (int l = 0; l < block.active; ++l) {
    T* to = values + block.regions[l] * region_stride;
    for (int64_t i = 0; i < count; ++i) to[i] = lanes[i * kLanes + l];
  }
}

// Finds the cells of one bin of a block after the other.
template <typename T>
class LaneLocator {
 public:
  LaneCells<T> y, x;

  LaneLocator(const DeformPsroiProblem<T>& problem, bool with_slopes)
      : y(problem.sizes.height, problem.sizes.samples, problem.sizes.width, with_slopes),
        x(problem.sizes.width, problem.sizes.samples, 1, with_slopes),
        problem_(problem) {}

  // `offsets` is an array of load_lanes, or null.
  void locate(const LaneBlock& block, int bin, const T* offsets) {
    LaneSamples<T> rows, columns;
    const int64_t pair = problem_.offset_of_bin[bin] * kLanes;
    const int64_t part = problem_.sizes.offset_plane() * kLanes;
    for (int l = 0; l < kLanes; ++l) {
      const bool moves = offsets != nullptr;
      const int64_t r = block.regions[l];
      const auto row = problem_.rows(r, bin, moves ? offsets[pair + part + l] : T(0));
      const auto column = problem_.columns(r, bin, moves ? offsets[pair + l] : T(0));
      rows.start[l] = row.start;
      rows.step[l] = row.step;
      columns.start[l] = column.start;
      columns.step[l] = column.step;
    }
    vectorized<LocateLanes>(rows, y);
    vectorized<LocateLanes>(columns, x);
  }

 private:
  const DeformPsroiProblem<T>& problem_;
};

}  // namespace dcn_det
