// Deformable position-sensitive RoI pooling on the CPU: the parts that forward and backward share.
//
// If many output channels move together, their cells are located once and the loops run over channels
// (roi_tiles.h). Otherwise, as with offsets per class, the loops run over regions (roi_lanes.h): one thread
// processes all planes of a class, bin by bin, so that a plane stays in the cache while all regions read it.
// In both cases, each sum is computed by one thread in an order that depends only on shapes and regions: the
// number of threads does not change a bit.
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
  int64_t bins, class_stride;          // class_stride: between the offset planes of consecutive classes
  std::vector<int64_t> offset_of_bin;  // within the planes of a class
  std::vector<int64_t> plane_of_bin;   // within the group
  const T *roi_rows, *offsets;         // offsets: null without offsets
  T offset_std;

  DeformPsroiProblem(const DeformPsroiSizes& sizes, const Tensor& roi_rows,
                     const std::optional<Tensor>& offset, double spatial_scale, double offset_std)
      : sizes(sizes),
        bins(sizes.bins()),
        class_stride(2 * sizes.offset_plane()),
        roi_rows(roi_rows.const_data_ptr<T>()),
        offsets(offset ? offset->const_data_ptr<T>() : nullptr),
        offset_std(static_cast<T>(offset_std)) {
    for (int64_t r = 0; r < sizes.rois; ++r) {
      rois.push_back(read_roi(this->roi_rows + r * 5, static_cast<T>(spatial_scale), T(-0.5), sizes.images));
      columns_.emplace_back(rois[r].x, rois[r].width, sizes.pooled, sizes.samples);
      rows_.emplace_back(rois[r].y, rois[r].height, sizes.pooled, sizes.samples);
    }
    for (int i = 0; i < sizes.pooled; ++i)
      for (int j = 0; j < sizes.pooled; ++j) {
        offset_of_bin.push_back(sizes.offset_index(0, 0, i, j));
        plane_of_bin.push_back(sizes.source_channel(0, i, j));
      }
  }

  bool over_channels() const { return sizes.channels_per_class() >= kMinTileChannels; }

  Tensor readable(const Tensor& map) const {
    return over_channels() ? readable_map(map, sizes) : dense_copy(map);
  }

  const RoiAxis<T>& rows(int64_t r) const { return rows_[r]; }
  const RoiAxis<T>& columns(int64_t r) const { return columns_[r]; }

  // Derivatives of a bin's position with respect to its offset.
  T offset_scale_x(int64_t r) const { return offset_std * rois[r].width; }
  T offset_scale_y(int64_t r) const { return offset_std * rois[r].height; }

 private:
  static constexpr int64_t kMinTileChannels = 8;

  std::vector<RoiAxis<T>> rows_, columns_;
};

// Regions of one image, for loops over regions. A partial block repeats its last region.
template <typename T>
struct LaneBlock {
  int64_t image, regions[kLanes];
  int active;
  LaneAxis<T> rows, columns;
};

// Blocks of regions of similar height, because a block reads as many rows as its largest bin.
template <typename T>
std::vector<LaneBlock<T>> lane_blocks(const DeformPsroiProblem<T>& problem) {
  const auto& rois = problem.rois;
  std::vector<int64_t> order;
  for (int64_t r = 0; r < problem.sizes.rois; ++r)
    if (rois[r].valid) order.push_back(r);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return rois[a].image != rois[b].image ? rois[a].image < rois[b].image : rois[a].height < rois[b].height;
  });
  std::vector<LaneBlock<T>> blocks;
  const auto set = [&](LaneBlock<T>& block, int lane, int64_t r) {
    block.regions[lane] = r;
    block.rows.set(lane, problem.rows(r));
    block.columns.set(lane, problem.columns(r));
  };
  for (const int64_t r : order) {
    if (blocks.empty() || blocks.back().active == kLanes || blocks.back().image != rois[r].image)
      blocks.push_back({rois[r].image, {}, 0, {}, {}});
    set(blocks.back(), blocks.back().active++, r);
  }
  for (LaneBlock<T>& block : blocks)
    for (int lane = block.active; lane < kLanes; ++lane) set(block, lane, block.regions[block.active - 1]);
  return blocks;
}

// Copies between arrays (values of a region, lane) of a block and tensors in which the values of a region are
// contiguous.
template <typename T>
void load_lanes(const T* values, int64_t region_stride, int64_t count, const LaneBlock<T>& block, T* lanes) {
  for (int l = 0; l < kLanes; ++l) {
    const T* from = values + block.regions[l] * region_stride;
    for (int64_t i = 0; i < count; ++i) lanes[i * kLanes + l] = from[i];
  }
}

template <typename T>
void store_lanes(const T* lanes, int64_t count, const LaneBlock<T>& block, T* values, int64_t region_stride) {
  for (int l = 0; l < block.active; ++l) {
    T* to = values + block.regions[l] * region_stride;
    for (int64_t i = 0; i < count; ++i) to[i] = lanes[i * kLanes + l];
  }
}

// Offsets of a block's bins, one class at a time; zeros without offsets.
template <typename T>
class LaneOffsets {
 public:
  explicit LaneOffsets(const DeformPsroiProblem<T>& problem)
      : problem_(problem), values_((problem.offsets != nullptr ? problem.class_stride : 1) * kLanes) {}

  void load(const LaneBlock<T>& block, int64_t class_) {
    const int64_t pairs = problem_.class_stride;
    if (problem_.offsets == nullptr) return;
    load_lanes(problem_.offsets + class_ * pairs, problem_.sizes.classes * pairs, pairs, block,
               values_.data());
  }

  const T* x(int bin) const { return at(bin, 0); }
  const T* y(int bin) const { return at(bin, problem_.sizes.offset_plane()); }

 private:
  const T* at(int bin, int64_t plane) const {
    return values_.data() +
           (problem_.offsets != nullptr ? (problem_.offset_of_bin[bin] + plane) * kLanes : 0);
  }

  const DeformPsroiProblem<T>& problem_;
  std::vector<T> values_;
};

// Cells of all bins, for loops over channels.
template <typename T>
CellPlan<T> plan_cells(const DeformPsroiProblem<T>& problem, bool slopes) {
  const DeformPsroiSizes& sizes = problem.sizes;
  CellPlan<T> plan(sizes, sizes.classes, true, problem.roi_rows,
                   [&](int64_t r) { return problem.rois[r].valid; });
  const auto blocks = lane_blocks(problem);
  const int64_t count = static_cast<int64_t>(blocks.size()), work = problem.bins * kLanes * 32;
  torch::stable::parallel_for(0, sizes.classes * count, grain(work), [&](int64_t begin, int64_t end) {
    LaneOffsets<T> offsets(problem);
    LaneSamples<T> y_samples(sizes.height, sizes.samples), x_samples(sizes.width, sizes.samples);
    LaneRows<T> y(sizes.height, 1, sizes.samples), x(sizes.width, 1, sizes.samples);
    const auto append = [](const LaneRows<T>& cells, int lane, CellLists<T>& lists) {
      lists.open();
      for (int a = lane; a < cells.count * kLanes; a += kLanes)
        if (cells.weight[a] > T(0)) lists.append(cells.index[a], cells.weight[a], cells.slope[a]);
    };
    for (int64_t i = begin; i < end; ++i) {
      const LaneBlock<T>& block = blocks[i % count];
      offsets.load(block, i / count);
      for (int bin = 0; bin < problem.bins; ++bin) {
        const int row = bin / sizes.pooled, column = bin % sizes.pooled;
        vectorized<LocateRows>(block.rows, row, offsets.y(bin), problem.offset_std, slopes, y_samples, y);
        vectorized<LocateRows>(block.columns, column, offsets.x(bin), problem.offset_std, slopes, x_samples,
                               x);
        for (int l = 0; l < block.active; ++l) {
          CellLists<T>& lists = plan.lists(i / count, block.regions[l]);
          if (bin == 0) lists.reserve(2 * problem.bins, 4);
          append(y, l, lists);
          append(x, l, lists);
        }
      }
    }
  });
  return plan;
}

// Visits the bins of all regions, class by class, and within a class plane by plane of the group.
template <typename T>
class LaneSweep {
 public:
  LaneRows<T> y;
  LaneColumns<T> x;

  LaneSweep(const DeformPsroiProblem<T>& problem, const std::vector<LaneBlock<T>>& blocks, bool slopes)
      : y(problem.sizes.height, problem.sizes.width, problem.sizes.samples),
        x(problem.sizes.width),
        problem_(problem),
        blocks_(blocks),
        slopes_(slopes),
        y_samples_(problem.sizes.height, problem.sizes.samples),
        x_samples_(problem.sizes.width, problem.sizes.samples) {
    for (size_t b = 0; b < blocks.size(); ++b) offsets_.emplace_back(problem);
  }

  // For every plane of the class in every image, calls enter(image, plane), then visit(block, bin) for the
  // bins that read the plane, with their cells in `y` and `x`, then leave(image, plane).
  template <typename Enter, typename Visit, typename Leave>
  void run(int64_t class_, const Enter& enter, const Visit& visit, const Leave& leave) {
    const DeformPsroiSizes& sizes = problem_.sizes;
    const int64_t count = static_cast<int64_t>(blocks_.size());
    for (int64_t b = 0; b < count; ++b) offsets_[b].load(blocks_[b], class_);
    for (int64_t image = 0, begin = 0, end = 0; image < sizes.images; ++image, begin = end) {
      while (end < count && blocks_[end].image == image) ++end;
      for (int64_t plane = 0; plane < int64_t(sizes.group) * sizes.group; ++plane) {
        enter(image, plane);
        for (int bin = 0; bin < problem_.bins; ++bin)
          for (int64_t b = begin; b < end && problem_.plane_of_bin[bin] == plane; ++b) {
            locate(b, bin);
            visit(b, bin);
          }
        leave(image, plane);
      }
    }
  }

 private:
  void locate(int64_t b, int bin) {
    const int row = bin / problem_.sizes.pooled, column = bin % problem_.sizes.pooled;
    vectorized<LocateRows>(blocks_[b].rows, row, offsets_[b].y(bin), problem_.offset_std, slopes_, y_samples_,
                           y);
    vectorized<LocateColumns>(blocks_[b].columns, column, offsets_[b].x(bin), problem_.offset_std, slopes_,
                              x_samples_, x);
  }

  const DeformPsroiProblem<T>& problem_;
  const std::vector<LaneBlock<T>>& blocks_;
  bool slopes_;
  LaneSamples<T> y_samples_, x_samples_;
  std::vector<LaneOffsets<T>> offsets_;
};

}  // namespace dcn_det
