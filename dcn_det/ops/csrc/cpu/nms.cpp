// Non-maximum suppression on the CPU: candidates in the order of their scores, each against the boxes of its
// class that were kept before it, until enough are kept. One thread does it all: the kept boxes are few and
// the loop over them is vectorised.

// A fused multiply-add would round an overlap that is equal to the threshold to either side of it.
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#else
#pragma GCC optimize("fp-contract=off")
#endif

#include <algorithm>
#include <array>
#include <bit>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "common/nms_arguments.h"
#include "cpu/vectorize.h"

namespace dcn_det {
namespace {

// Boxes as a structure of arrays.
template <typename T>
struct BoxArrays {
  std::vector<T> x1, y1, x2, y2, area;

  explicit BoxArrays(int64_t size) : x1(size), y1(size), x2(size), y2(size), area(size) {}

  void set(int64_t i, const Box<T>& box) {
    x1[i] = box.x1;
    y1[i] = box.y1;
    x2[i] = box.x2;
    y2[i] = box.y2;
    area[i] = box.area;
  }
};

// Whether one of the boxes [begin, end) suppresses a box. A product rules most of them out before any is
// divided.
template <typename T>
DCN_DET_INLINE bool suppressed_in(const BoxArrays<T>& kept, int64_t begin, int64_t end, const Box<T>& box,
                                  T threshold) {
  constexpr int64_t kStep = 64;
  const T *x1 = kept.x1.data(), *y1 = kept.y1.data(), *x2 = kept.x2.data(), *y2 = kept.y2.data();
  const T* area = kept.area.data();
  const T below = threshold * (T(1) - 8 * std::numeric_limits<T>::epsilon());
  for (int64_t first = begin; first < end; first += kStep) {
    const int64_t last = first + kStep < end ? first + kStep : end;
    int perhaps = 0;
#pragma omp simd reduction(| : perhaps)
    for (int64_t i = first; i < last; ++i) {
      const T shared = intersection(box, {x1[i], y1[i], x2[i], y2[i], area[i]});
      perhaps |= shared > below * (box.area + area[i] - shared);
    }
    if (perhaps == 0) continue;
    int certain = 0;
#pragma omp simd reduction(| : certain)
    for (int64_t i = first; i < last; ++i)
      certain |= suppresses(box, {x1[i], y1[i], x2[i], y2[i], area[i]}, threshold);
    if (certain != 0) return true;
  }
  return false;
}
DCN_DET_VECTORIZED bool suppressed(const BoxArrays<float>& kept, int64_t begin, int64_t end,
                                   const Box<float>& box, float threshold) {
  return suppressed_in(kept, begin, end, box, threshold);
}
DCN_DET_VECTORIZED bool suppressed(const BoxArrays<double>& kept, int64_t begin, int64_t end,
                                   const Box<double>& box, double threshold) {
  return suppressed_in(kept, begin, end, box, threshold);
}

// An unsigned number that is smaller the larger the score is, and equal for equal scores.
inline uint32_t descending_key(float score) {
  const uint32_t bits = std::bit_cast<uint32_t>(score + 0.0f);  // -0 becomes +0
  return bits >> 31 ? bits : ~bits & 0x7fffffffu;
}
inline uint64_t descending_key(double score) {
  const uint64_t bits = std::bit_cast<uint64_t>(score + 0.0);
  return bits >> 63 ? bits : ~bits & 0x7fffffffffffffffu;
}

// The candidates by decreasing score; equal scores keep the order of their indices. A radix sort, byte by
// byte.
template <typename T>
std::vector<int64_t> order_of(const T* boxes, const T* scores, int64_t size) {
  using Entry = std::pair<decltype(descending_key(T())), int64_t>;
  constexpr int kBytes = sizeof(Entry::first);
  std::vector<Entry> entries, sorted;
  std::array<std::array<int64_t, 256>, kBytes> counts{};
  for (int64_t i = 0; i < size; ++i) {
    if (!is_candidate(boxes + i * 4, scores[i])) continue;
    entries.emplace_back(descending_key(scores[i]), i);
    for (int byte = 0; byte < kBytes; ++byte) ++counts[byte][entries.back().first >> (8 * byte) & 255];
  }
  sorted.resize(entries.size());
  for (int byte = 0; byte < kBytes; ++byte) {
    int64_t before = 0;
    for (int64_t& count : counts[byte]) before += std::exchange(count, before);
    for (const Entry& entry : entries) sorted[counts[byte][entry.first >> (8 * byte) & 255]++] = entry;
    std::swap(entries, sorted);
  }
  std::vector<int64_t> order(entries.size());
  std::transform(entries.begin(), entries.end(), order.begin(),
                 [](const Entry& entry) { return entry.second; });
  return order;
}

// Classes numbered from 0, from labels of any value.
struct Classes {
  std::vector<int64_t> of_box, sizes;

  Classes(const int64_t* labels, int64_t size) : of_box(size, 0) {
    if (labels == nullptr || size == 0) {
      sizes.assign(1, size);
      return;
    }
    const auto [least, most] = std::minmax_element(labels, labels + size);
    const uint64_t range = static_cast<uint64_t>(*most) - static_cast<uint64_t>(*least);
    if (range < static_cast<uint64_t>(size) + 1024) {
      sizes.assign(range + 1, 0);
      for (int64_t i = 0; i < size; ++i) of_box[i] = labels[i] - *least;
    } else {
      std::vector<int64_t> values(labels, labels + size);
      std::sort(values.begin(), values.end());
      values.erase(std::unique(values.begin(), values.end()), values.end());
      sizes.assign(values.size(), 0);
      for (int64_t i = 0; i < size; ++i)
        of_box[i] = std::lower_bound(values.begin(), values.end(), labels[i]) - values.begin();
    }
    for (const int64_t class_ : of_box) ++sizes[class_];
  }
};

template <typename T>
std::vector<int64_t> keep_boxes(const Tensor& boxes, const Tensor& scores,
                                const std::optional<Tensor>& labels, double iou_threshold, int64_t max_keep) {
  const int64_t size = boxes.size(0);
  const T* corners = boxes.const_data_ptr<T>();
  const Classes classes(labels ? labels->const_data_ptr<int64_t>() : nullptr, size);
  // Every class has room for all its boxes.
  std::vector<int64_t> begin(1, 0);
  for (const int64_t count : classes.sizes) begin.push_back(begin.back() + count);
  std::vector<int64_t> end(begin.begin(), begin.end() - 1);
  BoxArrays<T> kept(size);
  std::vector<int64_t> result;
  const T threshold = round_down<T>(iou_threshold);
  for (const int64_t i : order_of(corners, scores.const_data_ptr<T>(), size)) {
    if (static_cast<int64_t>(result.size()) >= max_keep) break;
    const int64_t class_ = classes.of_box[i];
    const Box<T> box = Box<T>::read(corners + i * 4);
    if (suppressed(kept, begin[class_], end[class_], box, threshold)) continue;
    kept.set(end[class_]++, box);
    result.push_back(i);
  }
  return result;
}

Tensor nms(const Tensor& boxes, const Tensor& scores, std::optional<Tensor> labels, double iou_threshold,
           std::optional<int64_t> max_keep) {
  check_nms(boxes, scores, labels);
  const Tensor corners = torch::stable::contiguous(boxes), values = torch::stable::contiguous(scores);
  if (labels) labels = torch::stable::contiguous(*labels);
  const auto run = boxes.scalar_type() == ScalarType::Double ? keep_boxes<double> : keep_boxes<float>;
  const auto kept =
      run(corners, values, labels, iou_threshold, max_keep.value_or(std::numeric_limits<int64_t>::max()));
  Tensor result = torch::stable::new_empty(boxes, {static_cast<int64_t>(kept.size())}, ScalarType::Long);
  std::copy(kept.begin(), kept.end(), result.mutable_data_ptr<int64_t>());
  return result;
}

}  // namespace
}  // namespace dcn_det

STABLE_TORCH_LIBRARY_IMPL(dcn_det, CPU, m) { m.impl("nms", TORCH_BOX(&dcn_det::nms)); }
