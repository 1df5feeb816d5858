// CUDA kernels of the deformable convolution. A warp processes kBatch samples at a time, of neighboring
// output positions and the same tap: first each lane locates one corner of one sample, then the lanes share
// the samples' channels, which are contiguous in memory, several per access. Free of torch.
#pragma once

#include "common/deform_conv_shape.h"
#include "cuda/lanes.cuh"
#include "cuda/split.cuh"
#include "cuda/sums.cuh"

namespace dcn_det {

constexpr int kCorners = 4;
constexpr int kBatch = kWarp / kCorners;  // samples that a warp processes at a time
static_assert(kLeastLanes >= kCorners, "sum_corners needs one lane per corner");

// Few large products, because small ones leave multiprocessors idle; still less than the columns of a batch
// of 8 images.
constexpr int64_t kTileBytes = 512 << 20;

// Output positions per tile, if every element of a column takes so many bytes.
inline int64_t tile_rows_of(const DeformConvShape& shape, int64_t element_bytes) {
  const int64_t elements = static_cast<int64_t>(shape.taps()) * shape.channels;
  return tile_rows(shape, elements * element_bytes, kTileBytes, 1);
}

// Batches of samples in a tile, one warp per batch.
DCN_DET_INLINE int64_t batch_count(const DeformConvShape& shape, int64_t rows) {
  return (rows + kBatch - 1) / kBatch * shape.offset_groups * shape.taps();
}

// Up to kBatch neighboring rows of a tile, for one tap and one offset group.
struct Batch {
  int64_t row;
  int count, offset_group, tap;

  __device__ __forceinline__ Batch(const DeformConvShape& shape, int64_t rows, int64_t index) {
    const Division by_tap = divide(index, shape.taps());
    const Division by_group = divide(by_tap.quotient, shape.offset_groups);
    tap = static_cast<int>(by_tap.remainder);
    offset_group = static_cast<int>(by_group.remainder);
    row = by_group.quotient * kBatch;
    count = static_cast<int>(rows - row < kBatch ? rows - row : kBatch);
  }
};

// Positions read by a sample: indices of the corners in the features, at the offset group's first channel,
// and their modulated weights. A sample outside the map has place[0] < 0.
template <typename A>
struct CornerReads {
  int64_t place[kCorners];
  A weight[kCorners];

  __device__ __forceinline__ bool inside() const { return place[0] >= 0; }
};

// A lane's share of locating a sample: one of its corners.
template <typename A>
struct LocatedCorner {
  int64_t image, cell;
  A weight, slope_y, slope_x, modulation;
  bool inside;

  // Writes what other lanes need to `reads`, of the warp's kBatch samples.
  __device__ __forceinline__ LocatedCorner(const DeformConvShape& shape, const Planes<const A>& offset,
                                           const Planes<const A>& mask, const Batch& batch, int64_t first,
                                           int lane, CornerReads<A>* reads)
      : image(0), cell(0), weight(0), slope_y(0), slope_x(0), modulation(0), inside(false) {
    const int s = lane / kCorners, corner = lane % kCorners;
    if (s >= batch.count) return;
    const Division by_image = divide(first + batch.row + s, shape.out_cells());
    image = by_image.quotient;
    cell = by_image.remainder;
    const Sample<A> sample = sample_at(shape, offset, mask, image, cell, batch.offset_group, batch.tap);
    inside = sample.inside;
    if (inside) {
      const bool lower = (corner & 2) != 0, right = (corner & 1) != 0;
      const A weight_y = lower ? sample.y.weight[1] : sample.y.weight[0];
      const A weight_x = right ? sample.x.weight[1] : sample.x.weight[0];
      weight = weight_y * weight_x;
      slope_y = (lower ? sample.y.slope[1] : sample.y.slope[0]) * weight_x;
      slope_x = (right ? sample.x.slope[1] : sample.x.slope[0]) * weight_y;
      modulation = sample.modulation;
      const int64_t row = lower ? sample.y.cell[1] : sample.y.cell[0];
      const int64_t column = right ? sample.x.cell[1] : sample.x.cell[0];
      reads[s].place[corner] = (image * shape.cells() + row * shape.width + column) * shape.channels +
                               batch.offset_group * shape.offset_group_channels();
      reads[s].weight[corner] = modulation * weight;
    } else {
      reads[s].place[corner] = -1;
    }
  }
};

// Columns in the dtype of the features; they may replace their gradients.
template <typename T>
struct WholeColumns {
  Columns<T> columns;

  __device__ __forceinline__ bool wanted() const { return columns.data != nullptr; }

  template <int N, typename A>
  __device__ __forceinline__ void put(int64_t row, int tap, int channel, const A (&values)[N]) const {
    Pack<T, N> pack;
#pragma unroll
    for (int i = 0; i < N; ++i) pack.at[i] = static_cast<T>(values[i]);
    store(columns.at(row, tap, channel), pack);
  }
};

// Columns as parts, see split.cuh, the smallest first.
template <typename P>
struct SplitColumns {
  Columns<P> columns;
  int64_t part_stride;

  __device__ __forceinline__ bool wanted() const { return columns.data != nullptr; }

  template <int N>
  __device__ __forceinline__ void put(int64_t row, int tap, int channel, const float (&values)[N]) const {
    Pack<P, N> packs[kParts];
#pragma unroll
    for (int i = 0; i < N; ++i) {
      P parts[kParts];
      split(values[i], parts);
#pragma unroll
      for (int k = 0; k < kParts; ++k) packs[k].at[i] = parts[k];
    }
    P* const place = columns.at(row, tap, channel);
#pragma unroll
    for (int k = 0; k < kParts; ++k) store(place + k * part_stride, packs[kParts - 1 - k]);
  }
};

// Computes the columns of a tile: the `rows` output positions from `first` on. N divides the channels of a
// group and of an offset group.
template <typename T, typename A, int N, typename Target>
__global__ void __launch_bounds__(kThreads)
    fill_columns_kernel(DeformConvShape shape, const T* __restrict__ features, Planes<const A> offset,
                        Planes<const A> mask, Target columns, int64_t first, int64_t rows, int lanes) {
  __shared__ CornerReads<A> located[kWarps][kBatch];
  const int lane = static_cast<int>(threadIdx.x % kWarp), count = shape.offset_group_channels();
  CornerReads<A>* reads = located[threadIdx.x / kWarp];
  const Share share(lane, lanes);
  const int64_t batches = batch_count(shape, rows);
  for (int64_t i = first_thread() / kWarp; i < batches; i += all_threads() / kWarp) {
    const Batch batch(shape, rows, i);
    LocatedCorner<A>(shape, offset, mask, batch, first, lane, reads);
    __syncwarp();
    const int begin = batch.offset_group * count;
    for (int s = share.group; s < batch.count; s += share.groups) {
      const CornerReads<A>& read = reads[s];
      for (int c = share.lane * N; c < count; c += lanes * N) {
        A values[N] = {};
        if (read.inside()) {
#pragma unroll
          for (int k = 0; k < kCorners; ++k) {
            const Pack<T, N> feature = load<N>(features + read.place[k] + c);
#pragma unroll
            for (int j = 0; j < N; ++j) values[j] += read.weight[k] * static_cast<A>(feature.at[j]);
          }
        }
        columns.put(batch.row + s, batch.tap, begin + c, values);
      }
    }
    __syncwarp();
  }
}

// Adds a batch's column gradients to the corners that they were sampled from. The lanes of a group process a
// run of neighboring samples, W channels at a time. A sample's right corners are often the left corners of
// the next sample: their values are held back, so that one addition serves both.
template <typename T, typename A, int W, typename Sums>
__device__ __forceinline__ void scatter(const Sums& grad_features, const Columns<T>& columns,
                                        const CornerReads<A>* reads, const Batch& batch, const Share& share,
                                        int begin, int count) {
  const int run = kBatch / share.groups;
  const int stop = (share.group + 1) * run < batch.count ? (share.group + 1) * run : batch.count;
  for (int c = share.lane * W; c < count; c += share.lanes * W) {
    int64_t waiting[2] = {-1, -1};
    A held[2][W] = {};
    for (int s = share.group * run; s < stop; ++s) {
      const CornerReads<A>& read = reads[s];
      if (!read.inside()) continue;
      const Pack<T, W> grad = load<W>(columns.at(batch.row + s, batch.tap, begin + c));
#pragma unroll
      for (int y = 0; y < 2; ++y) {
        const A left = read.weight[2 * y], right = read.weight[2 * y + 1];
        const int64_t place = read.place[2 * y];
        const bool meet = waiting[y] == place;
        if (waiting[y] >= 0 && !meet) grad_features.add(waiting[y] + c, held[y]);
        if (left != A(0) || meet) {
          A sum[W];
#pragma unroll
          for (int i = 0; i < W; ++i) sum[i] = left * static_cast<A>(grad.at[i]) + (meet ? held[y][i] : A(0));
          grad_features.add(place + c, sum);
        }
        waiting[y] = right != A(0) ? read.place[2 * y + 1] : -1;
#pragma unroll
        for (int i = 0; i < W; ++i) held[y][i] = right * static_cast<A>(grad.at[i]);
      }
    }
#pragma unroll
    for (int y = 0; y < 2; ++y)
      if (waiting[y] >= 0) grad_features.add(waiting[y] + c, held[y]);
  }
}

// The sum of `values` over a group's lanes: lanes with index k modulo 4 receive the sum of corner k. Every
// exchange halves the number of values per lane, so that four sums cost little more than one.
template <typename A>
__device__ __forceinline__ A sum_corners(const A (&values)[kCorners], const Share& share) {
  const bool lower = (share.lane & 2) != 0, right = (share.lane & 1) != 0;
  const A left =
      (lower ? values[2] : values[0]) + __shfl_xor_sync(kAllLanes, lower ? values[0] : values[2], 2);
  const A other =
      (lower ? values[3] : values[1]) + __shfl_xor_sync(kAllLanes, lower ? values[1] : values[3], 2);
  A sum = (right ? other : left) + __shfl_xor_sync(kAllLanes, right ? left : other, 1);
  for (int step = kCorners; step < share.lanes; step *= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
  return sum;
}

// Computes the gradients of a tile's samples from those of its columns, except those whose pointer is null,
// and the columns if they are wanted; they may be where their gradients are. Samples share cells, so that
// grad_features is added to atomically; all other elements are written by one warp.
template <typename T, typename A, int N, typename Sums, typename Target>
__global__ void __launch_bounds__(kThreads)
    sweep_kernel(DeformConvShape shape, const T* __restrict__ features, Planes<const A> offset,
                 Planes<const A> mask, Columns<T> grad_columns, Sums feature_sums, Planes<A> grad_offset,
                 Planes<A> grad_mask, Target columns, int64_t first, int64_t rows, int lanes) {
  __shared__ CornerReads<A> located[kWarps][kBatch];
  __shared__ A corner_sums[kWarps][kBatch][kCorners];  // over channels of gradient * feature
  const int lane = static_cast<int>(threadIdx.x % kWarp), count = shape.offset_group_channels();
  CornerReads<A>* reads = located[threadIdx.x / kWarp];
  A(*sums)[kCorners] = corner_sums[threadIdx.x / kWarp];
  const Share share(lane, lanes);
  const auto grad_features = feature_sums.adder();
  const bool sample_grads = grad_offset.data != nullptr || grad_mask.data != nullptr;
  const int64_t batches = batch_count(shape, rows);
  for (int64_t i = first_thread() / kWarp; i < batches; i += all_threads() / kWarp) {
    const Batch batch(shape, rows, i);
    const LocatedCorner<A> corner(shape, offset, mask, batch, first, lane, reads);
    __syncwarp();
    const int begin = batch.offset_group * count;
    if (grad_features.wanted()) {
      scatter<T, A, N == 1 ? 1 : decltype(grad_features)::kWidth>(grad_features, grad_columns, reads, batch,
                                                                  share, begin, count);
      __syncwarp();  // before columns replace their gradients
    }
    // All lanes take part, because sum_corners needs them.
    for (int base = 0; base < kBatch && (sample_grads || columns.wanted()); base += share.groups) {
      const int s = base + share.group;
      const bool inside = s < batch.count && reads[s].inside();
      A products[kCorners] = {0, 0, 0, 0};
      for (int c = share.lane * N; s < batch.count && c < count; c += lanes * N) {
        A values[N] = {};
        if (inside) {
          const Pack<T, N> grad = load<N>(grad_columns.at(batch.row + s, batch.tap, begin + c));
#pragma unroll
          for (int k = 0; k < kCorners; ++k) {
            const Pack<T, N> feature = load<N>(features + reads[s].place[k] + c);
#pragma unroll
            for (int j = 0; j < N; ++j) {
              values[j] += reads[s].weight[k] * static_cast<A>(feature.at[j]);
              products[k] += static_cast<A>(grad.at[j]) * static_cast<A>(feature.at[j]);
            }
          }
        }
        if (columns.wanted()) columns.put(batch.row + s, batch.tap, begin + c, values);
      }
      if (sample_grads) {
        const A sum = sum_corners(products, share);
        if (inside && share.lane < kCorners) sums[s][share.lane] = sum;
      }
    }
    __syncwarp();
    if (sample_grads) {
      const A sum = corner.inside ? sums[lane / kCorners][lane % kCorners] : A(0);
      const A grad_y = sum_over_lanes(corner.modulation * corner.slope_y * sum, kCorners);
      const A grad_x = sum_over_lanes(corner.modulation * corner.slope_x * sum, kCorners);
      const A grad_modulation = sum_over_lanes(corner.weight * sum, kCorners);
      const int64_t channel = static_cast<int64_t>(batch.offset_group) * shape.taps() + batch.tap;
      if (lane / kCorners < batch.count && grad_offset.data != nullptr && lane % kCorners < 2) {
        grad_offset.at(corner.image, 2 * channel + lane % kCorners, corner.cell) =
            lane % kCorners == 0 ? grad_y : grad_x;
      }
      if (lane / kCorners < batch.count && grad_mask.data != nullptr && lane % kCorners == 2) {
        grad_mask.at(corner.image, channel, corner.cell) = grad_modulation;
      }
    }
  }
}

}  // namespace dcn_det
