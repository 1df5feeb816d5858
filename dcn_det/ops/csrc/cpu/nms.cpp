// Non-maximum suppression on the CPU: the boxes by decreasing score, each against those kept so far.
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")  // see rounded_product
#endif

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <unordered_map>
#include <vector>

#include "common/box_overlap.h"
#include "common/nms_driver.h"
#include "cpu/vectorize.h"

namespace dcn_det {
namespace {

template <typename A>
struct Ranked {
  using Bits = std::conditional_t<std::is_same_v<A, double>, uint64_t, uint32_t>;
  Bits key;
  int64_t index;

  // Keys rise as scores fall.
  Ranked(A score, int64_t index_) : index(index_) {
    constexpr Bits kSign = Bits(1) << (8 * sizeof(Bits) - 1);
    const Bits bits = std::bit_cast<Bits>(score == A(0) ? A(0) : score);  // -0 and 0 tie
    key = (bits & kSign) != 0 ? bits : ~(bits | kSign);
  }
  Ranked() = default;
};

// Boxes by decreasing score, ties by index; those whose score is NaN are left out.
template <typename A>
std::vector<int64_t> rank_by_score(const A* scores, int64_t count) {
  std::vector<Ranked<A>> ranked, sorted;
  ranked.reserve(count);
  for (int64_t i = 0; i < count; ++i) {
    if (!std::isnan(scores[i])) ranked.emplace_back(scores[i], i);
  }
  sorted.resize(ranked.size());
  // A radix sort, a byte at a time from the lowest on; every pass keeps the order of equal bytes.
  for (size_t shift = 0; shift < 8 * sizeof(ranked[0].key); shift += 8) {
    const auto byte_of = [&](const Ranked<A>& entry) { return (entry.key >> shift) & 255; };
    std::array<size_t, 257> start{};
    for (const Ranked<A>& entry : ranked) ++start[byte_of(entry) + 1];
    std::partial_sum(start.begin(), start.end(), start.begin());
    for (const Ranked<A>& entry : ranked) sorted[start[byte_of(entry)]++] = entry;
    ranked.swap(sorted);
  }
  std::vector<int64_t> order(ranked.size());
  for (size_t rank = 0; rank < order.size(); ++rank) order[rank] = ranked[rank].index;
  return order;
}

// Group g holds the ranks [start[g], start[g + 1]) of `ranks`, in increasing order.
struct Groups {
  std::vector<int64_t> start, ranks;
};

// The ranks of each label's boxes; all in one group without labels.
Groups group_by_label(const std::vector<int64_t>& order, const int64_t* labels) {
  const int64_t count = static_cast<int64_t>(order.size());
  Groups groups{{0}, std::vector<int64_t>(order.size())};
  if (labels == nullptr) {
    std::iota(groups.ranks.begin(), groups.ranks.end(), int64_t(0));
    groups.start.push_back(count);
    return groups;
  }
  std::unordered_map<int64_t, int64_t> known;
  std::vector<int64_t> group_of(order.size());
  for (int64_t rank = 0; rank < count; ++rank) {
    const auto [found, added] = known.try_emplace(labels[order[rank]], known.size());
    if (added) groups.start.push_back(0);
    group_of[rank] = found->second;
    ++groups.start[found->second + 1];
  }
  std::partial_sum(groups.start.begin(), groups.start.end(), groups.start.begin());
  std::vector<int64_t> next = groups.start;
  for (int64_t rank = 0; rank < count; ++rank) groups.ranks[next[group_of[rank]]++] = rank;
  return groups;
}

// Kept boxes, a coordinate at a time. An infinite area marks a place that is still free: nothing overlaps it.
template <typename A>
struct KeptBlock {
  static constexpr int kSize = 64;
  A x1[kSize] = {}, y1[kSize] = {}, x2[kSize] = {}, y2[kSize] = {}, area[kSize];

  KeptBlock() { std::fill(area, area + kSize, std::numeric_limits<A>::infinity()); }

  void set(int i, const Box<A>& box, A box_area) {
    x1[i] = box.x1;
    y1[i] = box.y1;
    x2[i] = box.x2;
    y2[i] = box.y2;
    area[i] = box_area;
  }
};

struct OverlapsAny {
  template <typename A>
  DCN_DET_INLINE static bool run(const KeptBlock<A>* blocks, size_t count, const Box<A>& box, A area,
                                 A threshold) {
    for (size_t b = 0; b < count; ++b) {
      const KeptBlock<A>& kept = blocks[b];
      int any = 0;
#pragma omp simd reduction(| : any)
      for (int i = 0; i < KeptBlock<A>::kSize; ++i) {
        const Box<A> other{kept.x1[i], kept.y1[i], kept.x2[i], kept.y2[i]};
        any |= overlap_may_exceed(threshold, box, area, other, kept.area[i]);
      }
      if (any == 0) continue;
      any = 0;
#pragma omp simd reduction(| : any)
      for (int i = 0; i < KeptBlock<A>::kSize; ++i) {
        const Box<A> other{kept.x1[i], kept.y1[i], kept.x2[i], kept.y2[i]};
        any |= overlap_exceeds(threshold, box, area, other, kept.area[i]);
      }
      if (any != 0) return true;
    }
    return false;
  }
};

// Marks the kept ones among the boxes of a group, at most `limit`.
template <typename A>
void suppress_group(const A* boxes, const std::vector<int64_t>& order, const int64_t* begin,
                    const int64_t* end, A threshold, int64_t limit, std::vector<char>& kept) {
  std::vector<KeptBlock<A>> blocks;
  int64_t count = 0;
  for (const int64_t* rank = begin; rank != end && count < limit; ++rank) {
    const A* corners = boxes + 4 * order[*rank];
    const Box<A> box{corners[0], corners[1], corners[2], corners[3]};
    const A area = area_of(box);
    if (vectorized<OverlapsAny>(blocks.data(), blocks.size(), box, area, threshold)) continue;
    const int place = static_cast<int>(count % KeptBlock<A>::kSize);
    if (place == 0) blocks.emplace_back();
    blocks.back().set(place, box, area);
    kept[*rank] = 1;
    ++count;
  }
}

template <typename A>
std::vector<int64_t> kept_boxes(const A* boxes, const A* scores, const int64_t* labels, int64_t count,
                                A threshold, int64_t limit) {
  const std::vector<int64_t> order = rank_by_score(scores, count);
  const Groups groups = group_by_label(order, labels);
  std::vector<char> kept(order.size());  // by rank; not bits, which threads could not write side by side
  const int64_t group_count = static_cast<int64_t>(groups.start.size()) - 1;
  torch::stable::parallel_for(0, group_count, 1, [&](int64_t begin, int64_t end) {
    const int64_t* ranks = groups.ranks.data();
    for (int64_t g = begin; g < end; ++g) {
      suppress_group(boxes, order, ranks + groups.start[g], ranks + groups.start[g + 1], threshold, limit,
                     kept);
    }
  });
  std::vector<int64_t> result;
  for (size_t rank = 0; rank < order.size() && static_cast<int64_t>(result.size()) < limit; ++rank) {
    if (kept[rank] != 0) result.push_back(order[rank]);
  }
  return result;
}

struct Cpu {
  static Tensor suppress(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& labels,
                         double iou_threshold, int64_t limit) {
    std::vector<int64_t> kept;
    const int64_t* label_data = labels.has_value() ? labels->const_data_ptr<int64_t>() : nullptr;
    const auto run = [&]<typename A>(A threshold) {
      kept = kept_boxes(boxes.const_data_ptr<A>(), scores.const_data_ptr<A>(), label_data, boxes.size(0),
                        threshold, limit);
    };
    if (boxes.scalar_type() == ScalarType::Double) {
      run(threshold_as<double>(iou_threshold));
    } else {
      run(threshold_as<float>(iou_threshold));
    }
    const Tensor result =
        torch::stable::new_empty(boxes, {static_cast<int64_t>(kept.size())}, ScalarType::Long);
    std::copy(kept.begin(), kept.end(), result.mutable_data_ptr<int64_t>());
    return result;
  }
};

}  // namespace
}  // namespace dcn_det

STABLE_TORCH_LIBRARY_IMPL(dcn_det, CPU, m) { m.impl("nms", TORCH_BOX(&dcn_det::nms<dcn_det::Cpu>)); }
