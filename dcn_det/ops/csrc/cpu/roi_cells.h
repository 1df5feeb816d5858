// Cells that the bins of a RoI pooling operator read. In every operator except max pooling, a bin is a sum of
// cells, each weighted by a factor of its row and a factor of its column, so that two lists describe a bin.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/psroi_pool.h"
#include "common/tensor_ops.h"
#include "cpu/grain.h"

namespace dcn_det {

// A row or column that a bin reads. `slope` is the derivative of the weight with respect to the bin's
// position.
template <typename T>
struct Cell {
  int index;
  T weight, slope;
};

template <typename T>
struct CellList {
  const Cell<T>* cells;
  int size;

  DCN_DET_INLINE const Cell<T>& operator[](int i) const { return cells[i]; }
};

// Cells of a bin on a map with contiguous channels; `stride` is the distance between neighboring cells.
template <typename T>
struct BinCells {
  const T* map;
  int64_t stride, width;
  CellList<T> rows, columns;
};

// Lists of rows and columns, built one after the other. Cells of weight zero are left out, so that their
// values, even NaN, do not matter.
template <typename T>
class CellLists {
 public:
  void reserve(int64_t lists, int64_t cells_of_list) {
    starts_.reserve(lists);
    cells_.reserve(lists * cells_of_list);
  }

  void open() { starts_.push_back(static_cast<int>(cells_.size())); }

  // Adds a bilinear sample at a position in [0, size - 1].
  void add_sample(T position) {
    const int lower = static_cast<int>(position);
    const T fraction = position - static_cast<T>(lower), inside = fraction > 0 ? T(1) : T(0);
    add(lower, T(1) - fraction, -inside);
    if (fraction > 0) add(lower + 1, fraction, inside);
  }

  // Appends a cell without merging it with an equal one.
  void append(int index, T weight, T slope) { cells_.push_back({index, weight, slope}); }

  void add(int index, T weight, T slope) {
    // Positions increase, so that neighboring samples share the newest cells.
    const int end = static_cast<int>(cells_.size());
    for (int i = end - 1; i >= starts_.back() && i >= end - 2; --i) {
      if (cells_[i].index != index) continue;
      cells_[i].weight += weight;
      cells_[i].slope += slope;
      return;
    }
    append(index, weight, slope);
  }

  // Turns the sums of the open list into means over `count` samples.
  void divide(T count) {
    for (auto cell = cells_.begin() + starts_.back(); cell < cells_.end(); ++cell) {
      cell->weight /= count;
      cell->slope /= count;
    }
  }

  CellList<T> list(int64_t i) const {
    const int begin = starts_[i];
    const int end = i + 1 < static_cast<int64_t>(starts_.size()) ? starts_[i + 1] : int(cells_.size());
    return {cells_.data() + begin, end - begin};
  }

 private:
  std::vector<Cell<T>> cells_;
  std::vector<int> starts_;
};

// Output channels [begin, begin + size) of one class; they read the same cells.
struct ChannelTile {
  int64_t class_, begin, size;
};

// Cells that the bins of all regions read. If bins move independently (`per_bin`), the lists of a region are
// the rows and columns of each bin in turn; otherwise, the rows of each row of bins, then the columns of each
// column.
template <typename T>
class CellPlan {
 public:
  PsroiSizes sizes;
  int64_t classes;
  std::vector<std::vector<int64_t>> regions;  // per image, from top to bottom: neighbors share cells
  std::vector<int64_t> invalid;               // regions that pool to zero
  std::vector<std::vector<int>> bins;         // bins that read each of the group^2 planes

  // `rois` are rows of five numbers; is_valid(region) tells whether a region reads the map.
  template <typename IsValid>
  CellPlan(const PsroiSizes& sizes, int64_t classes, bool per_bin, const T* rois, const IsValid& is_valid)
      : sizes(sizes),
        classes(classes),
        regions(sizes.images),
        bins(int64_t(sizes.group) * sizes.group),
        per_bin_(per_bin),
        lists_(classes * sizes.rois) {
    for (int64_t r = 0; r < sizes.rois; ++r)
      (is_valid(r) ? regions[static_cast<int64_t>(rois[r * 5])] : invalid).push_back(r);
    const auto above = [&](int64_t a, int64_t b) {
      return rois[a * 5 + 2] + rois[a * 5 + 4] < rois[b * 5 + 2] + rois[b * 5 + 4];
    };
    for (auto& of_image : regions) std::stable_sort(of_image.begin(), of_image.end(), above);
    for (int bin = 0; bin < sizes.bins(); ++bin)
      bins[sizes.source_channel(0, bin / sizes.pooled, bin % sizes.pooled)].push_back(bin);
  }

  // The lists of a region, to be filled before they are read.
  CellLists<T>& lists(int64_t class_, int64_t r) { return lists_[class_ * sizes.rois + r]; }

  // Cells of a bin on a map whose cells are `stride` apart.
  BinCells<T> cells(const T* map, int64_t stride, int64_t class_, int64_t r, int bin) const {
    const CellLists<T>& lists = lists_[class_ * sizes.rois + r];
    return {map, stride, sizes.width, lists.list(per_bin_ ? 2 * bin : bin / sizes.pooled),
            lists.list(per_bin_ ? 2 * bin + 1 : sizes.pooled + bin % sizes.pooled)};
  }

  std::vector<ChannelTile> tiles(int64_t width) const {
    std::vector<ChannelTile> result;
    const int64_t per_class = sizes.output_dim / classes;
    for (int64_t u = 0; u < classes; ++u)
      for (int64_t begin = 0; begin < per_class; begin += width)
        result.push_back({u, u * per_class + begin, std::min(width, per_class - begin)});
    return result;
  }

 private:
  bool per_bin_;
  std::vector<CellLists<T>> lists_;
};

}  // namespace dcn_det
