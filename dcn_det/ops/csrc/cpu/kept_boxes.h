// The boxes kept so far, in blocks by the position of their centers, so that a box is not compared with
// distant boxes. The order of comparisons does not matter: one overlap is enough.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "common/box_overlap.h"
#include "cpu/vectorize.h"

namespace dcn_det {

// Boxes, stored one coordinate at a time. A free place meets no box.
template <typename A>
struct BoxBlock {
  static constexpr int kSize = 64;
  static constexpr A kInfinity = std::numeric_limits<A>::infinity();
  A x1[kSize], y1[kSize], x2[kSize], y2[kSize], area[kSize];

  DCN_DET_INLINE void clear() {
    for (int i = 0; i < kSize; ++i) set(i, {kInfinity, kInfinity, -kInfinity, -kInfinity}, A(0));
  }

  DCN_DET_INLINE void set(int i, const Box<A>& box, A box_area) {
    x1[i] = box.x1;
    y1[i] = box.y1;
    x2[i] = box.x2;
    y2[i] = box.y2;
    area[i] = box_area;
  }

  // Extends box i to enclose another box.
  DCN_DET_INLINE void widen(int i, const Box<A>& box) {
    x1[i] = box.x1 < x1[i] ? box.x1 : x1[i];
    y1[i] = box.y1 < y1[i] ? box.y1 : y1[i];
    x2[i] = box.x2 > x2[i] ? box.x2 : x2[i];
    y2[i] = box.y2 > y2[i] ? box.y2 : y2[i];
  }

  // Whether box i may intersect this box; false if a coordinate that matters is NaN.
  DCN_DET_INLINE bool meets(int i, const Box<A>& box) const {
    return (x1[i] < box.x2) & (box.x1 < x2[i]) & (y1[i] < box.y2) & (box.y1 < y2[i]);
  }

  DCN_DET_INLINE bool any_meets(const Box<A>& box) const {
    int any = 0;
#pragma omp simd reduction(| : any)
    for (int i = 0; i < kSize; ++i) any |= meets(i, box);
    return any != 0;
  }

  DCN_DET_INLINE bool any_overlaps(const Box<A>& box, A box_area, A threshold) const {
    int any = 0;
#pragma omp simd reduction(| : any)
    for (int i = 0; i < kSize; ++i) {
      any |= overlap_may_exceed(threshold, box, box_area, {x1[i], y1[i], x2[i], y2[i]}, area[i]);
    }
    if (any == 0) return false;
    any = 0;
#pragma omp simd reduction(| : any)
    for (int i = 0; i < kSize; ++i) {
      any |= overlap_exceeds(threshold, box, box_area, {x1[i], y1[i], x2[i], y2[i]}, area[i]);
    }
    return any != 0;
  }
};

template <typename A>
class KeptBoxes {
  static constexpr int kRows = 8, kCells = kRows * kRows;
  static constexpr int64_t kFewBoxes = 512;  // up to which one cell is faster than many
  static_assert(kCells == BoxBlock<A>::kSize, "a block holds the bounds of all cells");

 public:
  // Removes all boxes and prepares for at most `most` boxes, which lie mostly within `around`.
  void reset(int64_t most, const Box<A>& around) {
    const int64_t needed = most / BoxBlock<A>::kSize + 1 + kCells;
    if (static_cast<int64_t>(blocks_.size()) < needed) {
      blocks_.resize(needed);
      previous_.resize(needed);
    }
    used_ = 0;
    bounds_.clear();
    std::fill_n(newest_, kCells, -1);
    std::fill_n(count_, kCells, int64_t(0));
    x_ = around.x1;
    y_ = around.y1;
    x_scale_ = most > kFewBoxes ? scale_of(around.x2 - around.x1) : A(0);
    y_scale_ = most > kFewBoxes ? scale_of(around.y2 - around.y1) : A(0);
  }

  DCN_DET_INLINE bool any_overlaps(const Box<A>& box, A area, A threshold) const {
    uint8_t met[kCells];
#pragma omp simd
    for (int i = 0; i < kCells; ++i) met[i] = bounds_.meets(i, box);
    for (int first = 0; first < kCells; first += 8) {
      uint64_t word;
      std::memcpy(&word, met + first, sizeof(word));
      for (int cell = first; word != 0; ++cell, word >>= 8) {
        if ((word & 1) == 0) continue;
        for (int64_t block = newest_[cell]; block >= 0; block = previous_[block]) {
          const BoxBlock<A>& boxes = blocks_[block];
          if (boxes.any_meets(box) && boxes.any_overlaps(box, area, threshold)) return true;
        }
      }
    }
    return false;
  }

  DCN_DET_INLINE void add(const Box<A>& box, A area) {
    const int cell = cell_of(box.y1 - y_ + (box.y2 - y_), y_scale_) * kRows +
                     cell_of(box.x1 - x_ + (box.x2 - x_), x_scale_);
    const int place = static_cast<int>(count_[cell]++ % BoxBlock<A>::kSize);
    if (place == 0) {
      previous_[used_] = newest_[cell];
      newest_[cell] = used_;
      blocks_[used_++].clear();
    }
    blocks_[newest_[cell]].set(place, box, area);
    bounds_.widen(cell, box);
  }

 private:
  static A scale_of(A extent) {
    return extent > A(0) && extent < BoxBlock<A>::kInfinity ? A(kRows) / (2 * extent) : A(0);
  }

  // The row or column at twice a center's distance from the origin; the first one for NaN.
  DCN_DET_INLINE static int cell_of(A twice, A scale) {
    const A cell = twice * scale;
    return cell > A(0) ? static_cast<int>(cell < A(kRows - 1) ? cell : A(kRows - 1)) : 0;
  }

  std::vector<BoxBlock<A>> blocks_;
  std::vector<int64_t> previous_;  // the previous block of each block's cell
  int64_t used_;
  BoxBlock<A> bounds_;  // bounding boxes of the cells
  int64_t newest_[kCells], count_[kCells];
  A x_, y_, x_scale_, y_scale_;
};

}  // namespace dcn_det
