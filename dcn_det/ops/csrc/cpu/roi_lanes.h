// RoI pooling for regions whose channels read cells of their own: the loops run over regions. Lane l of an
// array holds what belongs to the l-th region of a block.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "cpu/roi_loops.h"

namespace dcn_det {

constexpr int kLanes = 16;

// The samples of a bin along one axis: at start + i * step.
template <typename T>
struct LaneSamples {
  T start[kLanes], step[kLanes];
};

// The cells of one axis: entry k of lane l is at k * kLanes + l. Lanes that read fewer cells than others have
// entries of weight 0, whose index lies in the map. `index` is a multiple of `stride`.
template <typename T>
struct LaneCells {
  int size = 0, map_size, samples, stride;
  bool with_slopes;
  std::vector<int> index;
  std::vector<T> weight, slope, position;

  LaneCells(int map_size, int samples, int stride, bool with_slopes)
      : map_size(map_size),
        samples(samples),
        stride(stride),
        with_slopes(with_slopes),
        index(2 * samples * kLanes),
        weight(2 * samples * kLanes),
        slope(2 * samples * kLanes),
        position(samples * kLanes) {}
};

// Finds the cells of the samples that count (see SampleAxis), with the weights of their mean; slopes only
// where wanted.
struct LocateLanes {
  template <typename T>
  DCN_DET_INLINE static void run(const LaneSamples<T>& axis, LaneCells<T>& cells) {
    const int size = cells.map_size, samples = cells.samples;
    const T limit = static_cast<T>(size) - T(0.5), end = static_cast<T>(size - 1);
    T* position = cells.position.data();
    T counted[kLanes] = {}, scale[kLanes];
    int first[kLanes], last[kLanes];
    for (int l = 0; l < kLanes; ++l) first[l] = size, last[l] = 0;
    for (int i = 0; i < samples; ++i, position += kLanes) {
#pragma omp simd
      for (int l = 0; l < kLanes; ++l) {
        const T raw = axis.start[l] + static_cast<T>(i) * axis.step[l];
        const bool counts = raw >= T(-0.5) && raw <= limit;
        const T inside = raw < T(0) ? T(0) : (raw > end ? end : raw);
        const int lower = static_cast<int>(counts ? inside : T(0));
        counted[l] += counts ? T(1) : T(0);
        first[l] = counts && lower < first[l] ? lower : first[l];
        last[l] = counts && lower + 1 > last[l] ? lower + 1 : last[l];
        position[l] = counts ? inside : T(-2);  // reads no cell
      }
    }
    int span = 0;
    for (int l = 0; l < kLanes; ++l) {
      span = last[l] - first[l] + 1 > span ? last[l] - first[l] + 1 : span;
      scale[l] = counted[l] > T(0) ? T(1) / counted[l] : T(0);
    }
    if (span <= 2 * samples)
      list_neighbours(first, span, scale, cells);
    else
      list_samples(scale, cells);
  }

 private:
  // Every cell from the first to the last one; samples share them.
  template <typename T>
  DCN_DET_INLINE static void list_neighbours(const int* first, int span, const T* scale,
                                             LaneCells<T>& cells) {
    cells.size = span;
    const int size = cells.map_size, samples = cells.samples, stride = cells.stride;
    for (int k = 0; k < span; ++k) {
      const T* position = cells.position.data();
      T weight[kLanes] = {}, slope[kLanes] = {};
      for (int i = 0; i < samples; ++i, position += kLanes) {
        // By whole numbers: a sample just beyond a cell is, rounded, a whole cell away from the next one.
#pragma omp simd
        for (int l = 0; l < kLanes; ++l) {
          const int lower = static_cast<int>(position[l]), cell = first[l] + k;
          const T fraction = position[l] - static_cast<T>(lower);
          weight[l] += cell == lower ? T(1) - fraction : (cell == lower + 1 ? fraction : T(0));
        }
        if (!cells.with_slopes) continue;
#pragma omp simd
        for (int l = 0; l < kLanes; ++l) {
          const int lower = static_cast<int>(position[l]), cell = first[l] + k;
          const int between = position[l] > static_cast<T>(lower);
          slope[l] += static_cast<T>(between * ((cell == lower + 1) - (cell == lower)));
        }
      }
      int* index = cells.index.data() + k * kLanes;
      T *weights = cells.weight.data() + k * kLanes, *slopes = cells.slope.data() + k * kLanes;
#pragma omp simd
      for (int l = 0; l < kLanes; ++l) {
        const int cell = first[l] + k;
        index[l] = (cell < size ? cell : size - 1) * stride;
        weights[l] = weight[l] * scale[l];
        slopes[l] = slope[l] * scale[l];
      }
    }
  }

  // The two cells of each sample, where there are many between the samples that nobody reads.
  template <typename T>
  DCN_DET_INLINE static void list_samples(const T* scale, LaneCells<T>& cells) {
    cells.size = 2 * cells.samples;
    const int size = cells.map_size, stride = cells.stride;
    for (int k = 0; k < cells.size; ++k) {
      const T* position = cells.position.data() + k / 2 * kLanes;
      const bool upper = k % 2 == 1;
      int* index = cells.index.data() + k * kLanes;
      T *weights = cells.weight.data() + k * kLanes, *slopes = cells.slope.data() + k * kLanes;
#pragma omp simd
      for (int l = 0; l < kLanes; ++l) {
        const bool counts = position[l] >= T(0);
        const int lower = static_cast<int>(counts ? position[l] : T(0)), cell = lower + (upper ? 1 : 0);
        const T fraction = position[l] - static_cast<T>(lower);
        const T weight = upper ? fraction : T(1) - fraction, slope = upper ? T(1) : T(-1);
        index[l] = (cell < size ? cell : size - 1) * stride;
        weights[l] = counts ? weight * scale[l] : T(0);
        slopes[l] = counts && fraction > T(0) ? slope * scale[l] : T(0);
      }
    }
  }
};

// sum[l] = the weighted cells of lane l. What a cell of weight 0 holds, be it NaN, does not matter.
struct SumLanes {
  template <typename T>
  DCN_DET_INLINE static void run(const T* plane, const LaneCells<T>& y, const LaneCells<T>& x, T* sum) {
    T total[kLanes] = {};
    for (int a = 0; a < y.size; ++a) {
      const int* row = y.index.data() + a * kLanes;
      const T* row_weight = y.weight.data() + a * kLanes;
      T row_sum[kLanes] = {};
      for (int b = 0; b < x.size; ++b) {
        const int* column = x.index.data() + b * kLanes;
        const T* weight = x.weight.data() + b * kLanes;
#pragma omp simd
        for (int l = 0; l < kLanes; ++l) {
          const T value = plane[row[l] + column[l]];
          row_sum[l] += weight[l] > T(0) ? weight[l] * value : T(0);
        }
      }
#pragma omp simd
      for (int l = 0; l < kLanes; ++l) total[l] += row_weight[l] > T(0) ? row_weight[l] * row_sum[l] : T(0);
    }
    for (int l = 0; l < kLanes; ++l) sum[l] = total[l];
  }
};

// Adds to grad_x and grad_y the derivatives of lane l with respect to its bin's position.
struct MoveLanes {
  template <typename T>
  DCN_DET_INLINE static void run(const T* plane, const LaneCells<T>& y, const LaneCells<T>& x, const T* grad,
                                 T* grad_x, T* grad_y) {
    T total_x[kLanes] = {}, total_y[kLanes] = {};
    for (int a = 0; a < y.size; ++a) {
      const int* row = y.index.data() + a * kLanes;
      const T *row_weight = y.weight.data() + a * kLanes, *row_slope = y.slope.data() + a * kLanes;
      T row_sum[kLanes] = {}, row_move[kLanes] = {};
      for (int b = 0; b < x.size; ++b) {
        const int* column = x.index.data() + b * kLanes;
        const T *weight = x.weight.data() + b * kLanes, *slope = x.slope.data() + b * kLanes;
#pragma omp simd
        for (int l = 0; l < kLanes; ++l) {
          const T read = plane[row[l] + column[l]], value = weight[l] > T(0) ? read : T(0);
          row_sum[l] += weight[l] * value;
          row_move[l] += slope[l] * value;
        }
      }
#pragma omp simd
      for (int l = 0; l < kLanes; ++l) {
        total_x[l] += row_weight[l] > T(0) ? row_weight[l] * row_move[l] : T(0);
        total_y[l] += row_weight[l] > T(0) ? row_slope[l] * row_sum[l] : T(0);
      }
    }
    for (int l = 0; l < kLanes; ++l) {
      grad_x[l] += grad[l] * total_x[l];
      grad_y[l] += grad[l] * total_y[l];
    }
  }
};

// Adds the gradients of the first `active` lanes to the cells of a plane, lane after lane.
struct SpreadLanes {
  template <typename T>
  DCN_DET_INLINE static void run(T* grad_plane, const LaneCells<T>& y, const LaneCells<T>& x, const T* grad,
                                 int active) {
    const int *rows = y.index.data(), *columns = x.index.data();
    const T *row_weights = y.weight.data(), *weights = x.weight.data();
    for (int l = 0; l < active; ++l)
      for (int a = 0; a < y.size; ++a) {
        T* row = grad_plane + rows[a * kLanes + l];
        const T row_grad = grad[l] * row_weights[a * kLanes + l];
        for (int b = 0; b < x.size; ++b) row[columns[b * kLanes + l]] += row_grad * weights[b * kLanes + l];
      }
  }
};

}  // namespace dcn_det
