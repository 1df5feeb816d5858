// Non-maximum suppression on the CPU: compares boxes, by decreasing score, with those kept so far.
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

#include "common/nms_driver.h"
#include "cpu/kept_boxes.h"

namespace dcn_det {
namespace {

template <typename A>
struct Ranked {
  using Bits = std::conditional_t<std::is_same_v<A, double>, uint64_t, uint32_t>;
  Bits key;
  int64_t index;

  // Keys increase as scores decrease.
  Ranked(A score, int64_t index_) : index(index_) {
    constexpr Bits kSign = Bits(1) << (8 * sizeof(Bits) - 1);
    const Bits bits = std::bit_cast<Bits>(score == A(0) ? A(0) : score);  // -0 and 0 tie
    key = (bits & kSign) != 0 ? bits : ~(bits | kSign);
  }
  Ranked() = default;
};

// Indices of boxes by decreasing score, then by index; boxes whose score is NaN are left out.
template <typename A>
std::vector<int64_t> rank_by_score(const A* scores, int64_t count) {
  std::vector<Ranked<A>> ranked, sorted;
  ranked.reserve(count);
  for (int64_t i = 0; i < count; ++i) {
    if (!std::isnan(scores[i])) ranked.emplace_back(scores[i], i);
  }
  sorted.resize(ranked.size());
  // Radix sort, byte by byte from the lowest; every pass is stable.
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

// Group g consists of ranks[start[g]], ..., ranks[start[g + 1] - 1], in increasing order.
struct Groups {
  std::vector<int64_t> start, ranks;
};

// Groups the ranks of boxes by label; without labels, all form one group.
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

// The bounding box of all boxes; non-finite coordinates are ignored.
template <typename A>
Box<A> bounds_of(const A* boxes, int64_t count) {
  constexpr A kInfinity = std::numeric_limits<A>::infinity();
  A low[2] = {kInfinity, kInfinity}, high[2] = {-kInfinity, -kInfinity};
  for (int64_t i = 0; i < 4 * count; ++i) {
    const A at = boxes[i];
    if (!std::isfinite(at)) continue;
    low[i % 2] = std::min(low[i % 2], at);
    high[i % 2] = std::max(high[i % 2], at);
  }
  return {low[0], low[1], high[0], high[1]};
}

// Marks the kept boxes of a group, at most `limit`.
struct SuppressGroup {
  template <typename A>
  DCN_DET_INLINE static void run(const A* boxes, const int64_t* order, const int64_t* begin,
                                 const int64_t* end, A threshold, int64_t limit, KeptBoxes<A>& others,
                                 char* kept) {
    int64_t count = 0;
    for (const int64_t* rank = begin; rank != end && count < limit; ++rank) {
      const A* corners = boxes + 4 * order[*rank];
      const Box<A> box{corners[0], corners[1], corners[2], corners[3]};
      const A area = area_of(box);
      if (others.any_overlaps(box, area, threshold)) continue;
      others.add(box, area);
      kept[*rank] = 1;
      ++count;
    }
  }
};

template <typename A>
std::vector<int64_t> kept_boxes(const A* boxes, const A* scores, const int64_t* labels, int64_t count,
                                A threshold, int64_t limit) {
  const std::vector<int64_t> order = rank_by_score(scores, count);
  const Groups groups = group_by_label(order, labels);
  std::vector<char> kept(order.size());  // by rank; not bits, as threads write to neighboring entries
  const int64_t group_count = static_cast<int64_t>(groups.start.size()) - 1;
  const Box<A> around = bounds_of(boxes, count);
  torch::stable::parallel_for(0, group_count, 1, [&](int64_t first, int64_t last) {
    KeptBoxes<A> others;
    for (int64_t g = first; g < last; ++g) {
      const int64_t* ranks = groups.ranks.data();
      const int64_t *begin = ranks + groups.start[g], *end = ranks + groups.start[g + 1];
      others.reset(std::min<int64_t>(end - begin, limit), around);
      vectorized<SuppressGroup>(boxes, order.data(), begin, end, threshold, limit, others, kept.data());
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
    const Tensor result = uninitialized(boxes, {static_cast<int64_t>(kept.size())}, ScalarType::Long);
    std::copy(kept.begin(), kept.end(), result.mutable_data_ptr<int64_t>());
    return result;
  }
};

}  // namespace
}  // namespace dcn_det

STABLE_TORCH_LIBRARY_IMPL(dcn_det, CPU, m) { m.impl("nms", TORCH_BOX(&dcn_det::nms<dcn_det::Cpu>)); }
