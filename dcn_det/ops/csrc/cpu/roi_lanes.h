// RoI pooling for regions whose channels read different cells: the loops run over regions. Lane l of an array
// belongs to the l-th region of a block. Cells are located for all lanes together and read lane by lane, a
// window of neighboring columns at a time.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "common/deform_psroi_pool.h"
#include "cpu/transpose.h"

namespace dcn_det {

constexpr int kLanes = 16;
constexpr int kWindow = 8;

// One axis of the regions of a block; see RoiAxis.
template <typename T>
struct LaneAxis {
  T origin[kLanes], extent[kLanes], bin_extent[kLanes], step[kLanes];

  void set(int lane, const RoiAxis<T>& axis) {
    origin[lane] = axis.origin;
    extent[lane] = axis.extent;
    bin_extent[lane] = axis.bin_extent;
    step[lane] = axis.step;
  }
};

// Samples of a bin along one axis. Entry i of lane l is at i * kLanes + l; `lower` is relative to the lane's
// first cell, and negative for samples that do not count.
template <typename T>
struct LaneSamples {
  int size, samples, span = 0;  // size: cells of the map; span: maximum over lanes of cells spanned
  int first[kLanes];
  T scale[kLanes];
  std::vector<int> lower;
  std::vector<T> fraction;

  LaneSamples(int size, int samples)
      : size(size), samples(samples), lower(samples * kLanes), fraction(samples * kLanes) {}
};

// Rows that a bin reads: entry a of lane l is at a * kLanes + l. `index` is the position of the row's first
// cell in a LanePlanes; lanes with fewer rows than others read the blank row with weight 0.
template <typename T>
struct LaneRows {
  int count = 0, width, blank;
  std::vector<int> index;
  std::vector<T> weight, slope;

  LaneRows(int height, int width, int samples)
      : width(width),
        blank(height * width),
        index(2 * samples * kLanes),
        weight(2 * samples * kLanes),
        slope(2 * samples * kLanes) {}
};

// Columns that a bin reads, in windows: window w of lane l starts at column first[l] + w * kWindow, and its
// weights are at (w * kLanes + l) * kWindow. Columns of weight 0 are not read.
template <typename T>
struct LaneColumns {
  int windows = 0, first[kLanes];
  std::vector<T> weight, slope;

  explicit LaneColumns(int width) : weight((width + kWindow) * kLanes), slope(weight) {}
};

// Copies of planes, with room after the last cell for the blank row and for windows that extend beyond the
// map.
template <typename T>
class LanePlanes {
 public:
  LanePlanes(int64_t planes, int height, int width)
      : cells_(int64_t(height) * width), pitch_(cells_ + 2 * width + 2 * kWindow), data_(planes * pitch_) {}

  T* operator[](int64_t plane) { return data_.data() + plane * pitch_; }
  void load(int64_t plane, const T* from) { std::memcpy((*this)[plane], from, cells_ * sizeof(T)); }
  void clear(int64_t plane) { std::memset((*this)[plane], 0, cells_ * sizeof(T)); }
  void store(int64_t plane, T* to) { std::memcpy(to, (*this)[plane], cells_ * sizeof(T)); }

 private:
  int64_t cells_, pitch_;
  std::vector<T> data_;
};

// Locates the cells of the samples that count (see SampleAxis), with the weights of their mean, and the
// slopes if needed. `offset` moves the bin of each lane, relative to the region's extent.
struct LocateLanes {
 protected:
  template <typename T>
  DCN_DET_INLINE static void place(const LaneAxis<T>& axis, int bin, const T* offset, T offset_std,
                                   LaneSamples<T>& samples) {
    const int size = samples.size;
    const T limit = static_cast<T>(size) - T(0.5), end = static_cast<T>(size - 1);
    T start[kLanes];
    int first[kLanes], last[kLanes], counted[kLanes] = {};
#pragma omp simd
    for (int l = 0; l < kLanes; ++l) {
      first[l] = size;
      last[l] = 0;
      start[l] = bin_start(axis.origin[l], axis.extent[l], axis.bin_extent[l], bin,
                           rounded_product(offset[l], offset_std));
    }
    for (int i = 0; i < samples.samples; ++i) {
      int* lower = samples.lower.data() + i * kLanes;
      T* fraction = samples.fraction.data() + i * kLanes;
      // Two loops, and booleans as integers: otherwise GCC branches and the loops stay scalar.
      T inside[kLanes];
      int counts[kLanes];
#pragma omp simd
      for (int l = 0; l < kLanes; ++l) {
        const T raw = start[l] + rounded_product(static_cast<T>(i), axis.step[l]);
        const T positive = raw > T(0) ? raw : T(0);
        inside[l] = positive < end ? positive : end;
        counts[l] = static_cast<int>(raw >= T(-0.5)) & static_cast<int>(raw <= limit);
      }
#pragma omp simd
      for (int l = 0; l < kLanes; ++l) {
        const int cell = static_cast<int>(inside[l]);
        const int away = (1 - counts[l]) * (size + 1);  // beyond all cells
        const int low = cell + away, high = counts[l] * (cell + 1);
        fraction[l] = inside[l] - static_cast<T>(cell);
        lower[l] = cell - away;
        counted[l] += counts[l];
        first[l] = low < first[l] ? low : first[l];
        last[l] = high > last[l] ? high : last[l];
      }
    }
    int span = 0;
#pragma omp simd reduction(max : span)
    for (int l = 0; l < kLanes; ++l) {
      const bool reads = counted[l] > 0;
      samples.first[l] = reads ? first[l] : 0;
      samples.scale[l] = reads ? T(1) / static_cast<T>(counted[l]) : T(0);
      const int cells = reads ? last[l] - first[l] + 1 : 0;
      span = cells > span ? cells : span;
    }
    samples.span = span;
    for (int i = 0; i < samples.samples; ++i) {
      int* lower = samples.lower.data() + i * kLanes;
#pragma omp simd
      for (int l = 0; l < kLanes; ++l) lower[l] -= samples.first[l];
    }
  }

  // Weights of cell k, counted from each lane's first cell.
  template <typename T>
  DCN_DET_INLINE static void weigh_cell(const LaneSamples<T>& samples, int k, bool slopes, T* weights,
                                        T* slopes_out) {
    T weight[kLanes] = {}, slope[kLanes] = {};
    for (int i = 0; i < samples.samples; ++i) {
      const int* lower = samples.lower.data() + i * kLanes;
      const T* fraction = samples.fraction.data() + i * kLanes;
#pragma omp simd
      for (int l = 0; l < kLanes; ++l) {
        const T upper = fraction[l], here = lower[l] == k ? T(1) - upper : T(0);
        weight[l] += lower[l] == k - 1 ? upper : here;
      }
      if (!slopes) continue;
#pragma omp simd
      for (int l = 0; l < kLanes; ++l) {
        const T here = lower[l] == k ? T(-1) : T(0), side = lower[l] == k - 1 ? T(1) : here;
        slope[l] += fraction[l] > T(0) ? side : T(0);
      }
    }
#pragma omp simd
    for (int l = 0; l < kLanes; ++l) {
      weights[l] = weight[l] * samples.scale[l];
      slopes_out[l] = slope[l] * samples.scale[l];
    }
  }
};

struct LocateRows : LocateLanes {
  template <typename T>
  DCN_DET_INLINE static void run(const LaneAxis<T>& axis, int bin, const T* offset, T offset_std, bool slopes,
                                 LaneSamples<T>& samples, LaneRows<T>& rows) {
    place(axis, bin, offset, offset_std, samples);
    if (samples.span <= 2 * samples.samples)
      list_neighbors(samples, slopes, rows);
    else
      list_samples(samples, rows);
  }

 private:
  // Lists all rows from the first to the last; samples share them.
  template <typename T>
  DCN_DET_INLINE static void list_neighbors(const LaneSamples<T>& samples, bool slopes, LaneRows<T>& rows) {
    rows.count = samples.span;
    for (int k = 0; k < rows.count; ++k) {
      T* weight = rows.weight.data() + k * kLanes;
      weigh_cell(samples, k, slopes, weight, rows.slope.data() + k * kLanes);
      int* index = rows.index.data() + k * kLanes;
#pragma omp simd
      for (int l = 0; l < kLanes; ++l)
        index[l] = weight[l] > T(0) ? (samples.first[l] + k) * rows.width : rows.blank;
    }
  }

  // Lists the two rows of each sample, for samples with many unread rows between them.
  template <typename T>
  DCN_DET_INLINE static void list_samples(const LaneSamples<T>& samples, LaneRows<T>& rows) {
    rows.count = 2 * samples.samples;
    for (int k = 0; k < rows.count; ++k) {
      const int* lower = samples.lower.data() + k / 2 * kLanes;
      const T* fraction = samples.fraction.data() + k / 2 * kLanes;
      int* index = rows.index.data() + k * kLanes;
      T *weight = rows.weight.data() + k * kLanes, *slope = rows.slope.data() + k * kLanes;
      const int upper = k % 2;
#pragma omp simd
      for (int l = 0; l < kLanes; ++l) {
        const T share = upper ? fraction[l] : T(1) - fraction[l];
        weight[l] = lower[l] >= 0 ? share * samples.scale[l] : T(0);
        slope[l] =
            lower[l] >= 0 && fraction[l] > T(0) ? (upper ? samples.scale[l] : -samples.scale[l]) : T(0);
        index[l] = weight[l] > T(0) ? (samples.first[l] + lower[l] + upper) * rows.width : rows.blank;
      }
    }
  }
};

struct LocateColumns : LocateLanes {
  using Turn = TransposeMatrix<16>;

  template <typename T>
  DCN_DET_INLINE static void run(const LaneAxis<T>& axis, int bin, const T* offset, T offset_std, bool slopes,
                                 LaneSamples<T>& samples, LaneColumns<T>& columns) {
    place(axis, bin, offset, offset_std, samples);
    columns.windows = (samples.span + kWindow - 1) / kWindow;
    for (int l = 0; l < kLanes; ++l) columns.first[l] = samples.first[l];
    T weight[kWindow * kLanes] = {}, slope[kWindow * kLanes] = {};
    for (int w = 0; w < columns.windows; ++w) {
      const int count = samples.span - w * kWindow;
      for (int k = 0; k < kWindow; ++k) {
        if (k < count)
          weigh_cell(samples, w * kWindow + k, slopes, weight + k * kLanes, slope + k * kLanes);
        else
          std::memset(weight + k * kLanes, 0, kLanes * sizeof(T));
      }
      const int64_t start = w * kLanes * kWindow;
      Turn::run(weight, kLanes, kWindow, kLanes, columns.weight.data() + start, kWindow);
      if (slopes) Turn::run(slope, kLanes, kWindow, kLanes, columns.slope.data() + start, kWindow);
    }
  }
};

// Sums over a window. Vectors stay in registers only as local variables, hence this base class with a
// function for the loops below.
struct SweepLanes {
 protected:
  // The sum of values[i] * factors[i] over the columns that are read; values of other columns, even NaN, do
  // not matter.
  template <typename T, typename Window>
  DCN_DET_INLINE static T sum_read(const Window& values, const T* weights, const T* factors) {
    Window weight, factor;
    std::memcpy(&weight, weights, sizeof(Window));
    std::memcpy(&factor, factors, sizeof(Window));
    Window sum = weight > T(0) ? values * factor : Window{};
    sum += __builtin_shufflevector(sum, sum, 4, 5, 6, 7, 0, 1, 2, 3);
    sum += __builtin_shufflevector(sum, sum, 2, 3, 0, 1, 6, 7, 4, 5);
    return sum[0] + sum[1];
  }
};

// sum[l] = the weighted sum of lane l's cells in a plane of LanePlanes.
struct SumLanes : SweepLanes {
  template <typename T>
  DCN_DET_INLINE static void run(const T* plane, const LaneRows<T>& y, const LaneColumns<T>& x, T* sum) {
    typedef T Window __attribute__((vector_size(kWindow * sizeof(T))));
    for (int l = 0; l < kLanes; ++l) sum[l] = 0;
    for (int w = 0; w < x.windows; ++w)
      for (int l = 0; l < kLanes; ++l) {
        const T* from = plane + x.first[l] + w * kWindow;
        Window total = {}, cells;
        for (int a = l; a < y.count * kLanes; a += kLanes) {
          std::memcpy(&cells, from + y.index[a], sizeof(Window));
          total += y.weight[a] * cells;
        }
        const T* weights = &x.weight[(w * kLanes + l) * kWindow];
        sum[l] += sum_read(total, weights, weights);
      }
  }
};

// Adds the derivatives with respect to the position of each lane's bin to grad_x and grad_y.
struct MoveLanes : SweepLanes {
  template <typename T>
  DCN_DET_INLINE static void run(const T* plane, const LaneRows<T>& y, const LaneColumns<T>& x, const T* grad,
                                 T* grad_x, T* grad_y) {
    typedef T Window __attribute__((vector_size(kWindow * sizeof(T))));
    for (int w = 0; w < x.windows; ++w)
      for (int l = 0; l < kLanes; ++l) {
        const T* from = plane + x.first[l] + w * kWindow;
        Window total = {}, moved = {}, cells;
        for (int a = l; a < y.count * kLanes; a += kLanes) {
          std::memcpy(&cells, from + y.index[a], sizeof(Window));
          total += y.weight[a] * cells;
          moved += y.slope[a] * cells;
        }
        const int64_t at = (w * kLanes + l) * kWindow;
        grad_x[l] += grad[l] * sum_read(total, &x.weight[at], &x.slope[at]);
        grad_y[l] += grad[l] * sum_read(moved, &x.weight[at], &x.weight[at]);
      }
  }
};

// Adds the gradients of the first `active` lanes to a plane of LanePlanes, lane by lane.
struct SpreadLanes : SweepLanes {
  template <typename T>
  DCN_DET_INLINE static void run(T* grad_plane, const LaneRows<T>& y, const LaneColumns<T>& x, const T* grad,
                                 int active) {
    typedef T Window __attribute__((vector_size(kWindow * sizeof(T))));
    for (int w = 0; w < x.windows; ++w)
      for (int l = 0; l < active; ++l) {
        T* to = grad_plane + x.first[l] + w * kWindow;
        Window share, cells;
        std::memcpy(&share, &x.weight[(w * kLanes + l) * kWindow], sizeof(Window));
        share = share > T(0) ? grad[l] * share : Window{};
        for (int a = l; a < y.count * kLanes; a += kLanes) {
          std::memcpy(&cells, to + y.index[a], sizeof(Window));
          cells += y.weight[a] * share;
          std::memcpy(to + y.index[a], &cells, sizeof(Window));
        }
      }
  }
};

}  // namespace dcn_det
