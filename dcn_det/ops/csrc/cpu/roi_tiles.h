// RoI pooling for regions whose channels read the same cells: the loops run over contiguous channels.
//
// A channels-last map is read in place. Other maps are copied in tiles of a few channels of the planes that a
// bin reads; a tile stays in the cache while all regions read it. Tiles depend only on shapes, each is
// processed by one thread, and every sum has a fixed order: the number of threads does not change a bit.
#pragma once

#include <memory>

#include "common/roi_arguments.h"
#include "cpu/large_pages.h"
#include "cpu/roi_cells.h"
#include "cpu/transpose.h"

namespace dcn_det {

constexpr int kTileChannels = 32;
constexpr int kPadding = 16;  // between rows of channels: rows 4 KiB apart would evict each other

// sum[i] = the weighted sum of cells in channel i < n. Up to eight vectors of channels stay in registers over
// all cells.
template <int kVectorBytes>
struct SumCells {
  template <typename T>
  DCN_DET_INLINE static void run(BinCells<T> bin, int64_t n, T* sum) {
    constexpr int64_t kLength = kVectorBytes / sizeof(T);
    const bool fills_vector = n >= kLength;
    sum_vectors<8, kVectorBytes>(bin, n, sum);
    sum_vectors<4, kVectorBytes>(bin, n, sum);
    sum_vectors<2, kVectorBytes>(bin, n, sum);
    sum_vectors<1, kVectorBytes>(bin, n, sum);
    if (n > 0 && fills_vector) {  // repeats some channels, with equal results, instead of single channels
      bin.map -= kLength - n;
      sum -= kLength - n;
      n = kLength;
      sum_vectors<1, kVectorBytes>(bin, n, sum);
    }
    if constexpr (kVectorBytes > 32) sum_vectors<1, 32>(bin, n, sum);
    if constexpr (kVectorBytes > 16) sum_vectors<1, 16>(bin, n, sum);
    sum_vectors<1, sizeof(T)>(bin, n, sum);
  }

 private:
  // Processes as many blocks of kVectors vectors as remain, and advances past them.
  template <int kVectors, int kBytes, typename T>
  DCN_DET_INLINE static void sum_vectors(BinCells<T>& bin, int64_t& n, T*& sum) {
    typedef T Vector __attribute__((vector_size(kBytes)));
    constexpr int64_t kLength = kBytes / sizeof(T), kBlock = kVectors * kLength;
    for (; n >= kBlock; n -= kBlock, bin.map += kBlock, sum += kBlock) {
      Vector total[kVectors];  // in registers only if filled and stored one by one
      for (Vector& each : total) each = Vector{};
      for (int a = 0; a < bin.rows.size; ++a) {
        const T* row = bin.map + bin.rows[a].index * bin.width * bin.stride;
        for (int b = 0; b < bin.columns.size; ++b) {
          const T* cell = row + bin.columns[b].index * bin.stride;
          const T weight = bin.rows[a].weight * bin.columns[b].weight;
          for (int k = 0; k < kVectors; ++k) {
            Vector values;
            std::memcpy(&values, cell + k * kLength, sizeof(Vector));
            total[k] += weight * values;
          }
        }
      }
      for (int k = 0; k < kVectors; ++k) std::memcpy(sum + k * kLength, &total[k], sizeof(Vector));
    }
  }
};

// Adds the gradient of n <= kTileChannels channels of a bin to the cells of grad_map, and computes the
// derivatives with respect to the bin's position, (x, y). Either target may be null.
struct SpreadCells {
  template <typename T>
  DCN_DET_INLINE static void run(BinCells<T> bin, T* grad_map, int64_t n, const T* grad, T* position_grad) {
    if (n == 32)
      spread_channels(bin, grad_map, 32, grad, position_grad);
    else if (n == 16)
      spread_channels(bin, grad_map, 16, grad, position_grad);
    else
      spread_channels(bin, grad_map, n, grad, position_grad);
  }

 private:
  template <typename T>
  DCN_DET_INLINE static void spread_channels(const BinCells<T>& bin, T* grad_map, int64_t n, const T* grad,
                                             T* position_grad) {
    T sum_x[kTileChannels] = {}, sum_y[kTileChannels] = {};
    for (int a = 0; a < bin.rows.size; ++a)
      for (int b = 0; b < bin.columns.size; ++b) {
        const Cell<T> y = bin.rows[a], x = bin.columns[b];
        const int64_t cell = (y.index * bin.width + x.index) * bin.stride;
        if (grad_map != nullptr) {
          const T weight = y.weight * x.weight;
          T* target = grad_map + cell;
#pragma omp simd
          for (int64_t i = 0; i < n; ++i) target[i] += weight * grad[i];
        }
        if (position_grad != nullptr) {
          const T slope_x = y.weight * x.slope, slope_y = y.slope * x.weight;
          const T* value = bin.map + cell;
#pragma omp simd
          for (int64_t i = 0; i < n; ++i) {
            sum_x[i] += slope_x * value[i];
            sum_y[i] += slope_y * value[i];
          }
        }
      }
    if (position_grad == nullptr) return;
    T total_x = 0, total_y = 0;
#pragma omp simd reduction(+ : total_x, total_y)
    for (int64_t i = 0; i < n; ++i) {
      total_x += grad[i] * sum_x[i];
      total_y += grad[i] * sum_y[i];
    }
    position_grad[0] = total_x;
    position_grad[1] = total_y;
  }
};

// Whether a map is read in place.
inline bool reads_in_place(const PsroiSizes& sizes, const Tensor& map) {
  return sizes.group == 1 && is_channels_last(map);
}

// The map in a layout that the loops read.
inline Tensor readable_map(const Tensor& map, const PsroiSizes& sizes) {
  return reads_in_place(sizes, map) ? map : dense_copy(map);
}

namespace tiles {

// Planes of one image that the same bins read, for the channels of one tile.
struct Item {
  ChannelTile tile;
  int64_t image, part, first_plane;  // first_plane: of the tile's first channel
};

template <typename T>
struct Items {
  const CellPlan<T>& plan;
  std::vector<ChannelTile> list;
  int64_t parts;

  explicit Items(const CellPlan<T>& plan)
      : plan(plan), list(plan.tiles(kTileChannels)), parts(static_cast<int64_t>(plan.bins.size())) {}

  int64_t count() const { return plan.sizes.images * static_cast<int64_t>(list.size()) * parts; }
  int64_t cells() const { return int64_t(plan.sizes.height) * plan.sizes.width; }
  int64_t work() const { return (cells() + plan.sizes.rois * 16) * kTileChannels; }

  Item operator[](int64_t i) const {
    const int64_t count = static_cast<int64_t>(list.size()), image = i / parts / count, part = i % parts;
    const ChannelTile& tile = list[i / parts % count];
    return {tile, image, part, image * plan.sizes.input_channels() + tile.begin * parts + part};
  }
};

template <typename T>
void pool_packed(const CellPlan<T>& plan, const T* input, T* output) {
  const Items<T> items(plan);
  const PsroiSizes& sizes = plan.sizes;
  const int64_t bins = sizes.bins(), cells = items.cells(), channels = sizes.output_dim;
  const int64_t pitch = channels + kPadding;
  // Neighboring channels are written together and transposed to neighboring bins afterwards.
  const std::unique_ptr<T[]> by_bin(new T[sizes.rois * bins * pitch]);
  torch::stable::parallel_for(0, items.count(), grain(items.work()), [&](int64_t begin, int64_t end) {
    std::vector<T> packed(cells * kTileChannels);
    for (int64_t i = begin; i < end; ++i) {
      const auto [tile, image, part, first_plane] = items[i];
      if (plan.regions[image].empty() || plan.bins[part].empty()) continue;
      vectorized<TransposeMatrix>(input + first_plane * cells, items.parts * cells, tile.size, cells,
                                  packed.data(), tile.size);
      for (const int64_t r : plan.regions[image])
        for (const int bin : plan.bins[part])
          vectorized<SumCells>(plan.cells(packed.data(), tile.size, tile.class_, r, bin), tile.size,
                               &by_bin[(r * bins + bin) * pitch + tile.begin]);
    }
  });
  for (const std::vector<int64_t>& regions : plan.regions)
    torch::stable::parallel_for(0, regions.size(), grain(bins * channels), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        vectorized<TransposeMatrix>(&by_bin[regions[i] * bins * pitch], pitch, bins, channels,
                                    output + regions[i] * bins * channels, bins);
    });
}

template <typename T>
void pool_in_place(const CellPlan<T>& plan, const T* input, T* output) {
  const PsroiSizes& sizes = plan.sizes;
  const int64_t channels = sizes.output_dim, bins = sizes.bins(), width = sizes.width;
  const int64_t pitch = channels + kPadding;
  const auto classes = plan.tiles(channels);
  for (size_t image = 0; image < plan.regions.size(); ++image) {
    const std::vector<int64_t>& regions = plan.regions[image];
    const T* map = input + image * sizes.height * width * channels;
    torch::stable::parallel_for(
        0, regions.size(), grain(channels * bins * 8), [&](int64_t begin, int64_t end) {
          std::vector<T> by_bin(pitch * bins);
          for (int64_t i = begin; i < end; ++i) {
            const int64_t r = regions[i];
            for (const ChannelTile& class_ : classes)
              for (int bin = 0; bin < bins; ++bin)
                vectorized<SumCells>(plan.cells(map + class_.begin, channels, class_.class_, r, bin),
                                     class_.size, &by_bin[bin * pitch + class_.begin]);
            vectorized<TransposeMatrix>(by_bin.data(), pitch, bins, channels, output + r * channels * bins,
                                        bins);
          }
        });
  }
}

// Gradients from the bins of one tile; the tile's channels start at `map` and `grad_map`.
template <typename T>
void spread_tile(const CellPlan<T>& plan, const ChannelTile& tile, int64_t image,
                 const std::vector<int>& bins, const T* grad_output, const T* map, T* grad_map,
                 int64_t stride, int64_t channels, T* position_grads) {
  const int64_t bin_count = plan.sizes.bins();
  T grads[kTileChannels] = {};
  for (const int64_t r : plan.regions[image])
    for (const int bin : bins) {
      const T* grad = grad_output + (r * plan.sizes.output_dim + tile.begin) * bin_count + bin;
      for (int64_t c = 0; c < tile.size; ++c) grads[c] = grad[c * bin_count];
      T* pair = position_grads != nullptr ? position_grads + (r * bin_count + bin) * 2 : nullptr;
      vectorized<SpreadCells>(plan.cells(map, stride, tile.class_, r, bin), grad_map, channels, grads, pair);
    }
}

}  // namespace tiles

// Pools `input`, a readable_map in the dtype of the plan.
template <typename T>
Tensor pool_cells(const CellPlan<T>& plan, const Tensor& input) {
  const PsroiSizes& sizes = plan.sizes;
  Tensor output = uninitialized(input, {sizes.rois, sizes.output_dim, sizes.pooled, sizes.pooled});
  if (output.numel() == 0) return output;
  if (input.numel() == 0) return torch::stable::zero_(output);
  T* out = output.template mutable_data_ptr<T>();
  const int64_t size = sizes.output_dim * sizes.bins();
  for (const int64_t r : plan.invalid) std::fill(out + r * size, out + (r + 1) * size, T(0));
  const auto pool = reads_in_place(sizes, input) ? tiles::pool_in_place<T> : tiles::pool_packed<T>;
  pool(plan, input.template const_data_ptr<T>(), out);
  return output;
}

// Gradients of pool_cells. `map` is its input, and may be null if position_grads is null. grad_map, if not
// null, may be uninitialized, and is channels-last if `in_place`. position_grads, if not null, is (tiles, R,
// bins, 2) zeros, for the tiles of plan.tiles(kTileChannels).
template <typename T>
void spread_cells(const CellPlan<T>& plan, const T* grad_output, const T* map, T* grad_map, bool in_place,
                  T* position_grads) {
  const PsroiSizes& sizes = plan.sizes;
  const tiles::Items<T> items(plan);
  const int64_t cells = items.cells(), channels = sizes.input_channels();
  const auto position_grads_of = [&](int64_t tile) {
    return position_grads != nullptr ? position_grads + tile * sizes.rois * sizes.bins() * 2 : nullptr;
  };
  if (in_place) {
    const int64_t count = static_cast<int64_t>(items.list.size());
    torch::stable::parallel_for(0, count, grain(items.work()), [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t)
        for (int64_t image = 0; image < sizes.images; ++image) {
          const ChannelTile& tile = items.list[t];
          const int64_t first = image * cells * channels + tile.begin;
          for (int64_t cell = 0; grad_map != nullptr && cell < cells; ++cell)
            std::fill_n(grad_map + first + cell * channels, tile.size, T(0));
          tiles::spread_tile(
              plan, tile, image, plan.bins[0], grad_output, map != nullptr ? map + first : nullptr,
              grad_map != nullptr ? grad_map + first : nullptr, channels, tile.size, position_grads_of(t));
        }
    });
    return;
  }
  torch::stable::parallel_for(0, items.count(), grain(items.work()), [&](int64_t begin, int64_t end) {
    std::vector<T> packed(position_grads != nullptr ? cells * kTileChannels : 0);
    std::vector<T> packed_grad(grad_map != nullptr ? cells * kTileChannels : 0);
    for (int64_t i = begin; i < end; ++i) {
      const tiles::Item item = items[i];
      const int64_t first = item.first_plane * cells, plane_stride = items.parts * cells;
      if (position_grads != nullptr)
        vectorized<TransposeMatrix>(map + first, plane_stride, item.tile.size, cells, packed.data(),
                                    item.tile.size);
      if (grad_map != nullptr) std::fill_n(packed_grad.data(), cells * item.tile.size, T(0));
      tiles::spread_tile(plan, item.tile, item.image, plan.bins[item.part], grad_output, packed.data(),
                         grad_map != nullptr ? packed_grad.data() : nullptr, item.tile.size, item.tile.size,
                         position_grads_of(i / items.parts % items.list.size()));
      if (grad_map != nullptr)
        vectorized<TransposeMatrix>(packed_grad.data(), item.tile.size, cells, item.tile.size,
                                    grad_map + first, plane_stride);
    }
  });
}

// The contiguous gradient of pool_cells' input.
template <typename T>
Tensor input_gradient(const CellPlan<T>& plan, const Tensor& grad_output) {
  const PsroiSizes& sizes = plan.sizes;
  const Tensor grad = dense(cast(grad_output, accumulate_dtype(grad_output.scalar_type())));
  Tensor grad_input =
      in_large_pages(uninitialized(grad, {sizes.images, sizes.input_channels(), sizes.height, sizes.width}));
  if (grad_input.numel() == 0) return grad_input;
  spread_cells<T>(plan, grad.template const_data_ptr<T>(), nullptr, grad_input.template mutable_data_ptr<T>(),
                  false, nullptr);
  return grad_input;
}

}  // namespace dcn_det
