// RoI max pooling on the CPU. The forward pass reads a channels-last map, with loops over channels; the
// backward pass writes planes, one thread per block of planes.
#include <tuple>
#include <vector>

#include "common/roi_arguments.h"
#include "cpu/transpose.h"

namespace dcn_det {
namespace {

// The maximum of the cells and its index in the plane, for n contiguous channels. The first of equal cells
// wins; a NaN wins over all numbers.
struct MaxCells {
  template <typename T>
  DCN_DET_INLINE static void run(const T* map, CellRange rows, CellRange columns, int width, int64_t n,
                                 T* best, int32_t* index) {
    const int32_t first = rows.begin * width + columns.begin;
    for (int64_t i = 0; i < n; ++i) {
      best[i] = map[first * n + i];
      index[i] = first;
    }
    for (int y = rows.begin; y < rows.end; ++y)
      for (int x = columns.begin; x < columns.end; ++x) {
        const int32_t cell = y * width + x;
        const T* value = map + cell * n;
#pragma omp simd
        for (int64_t i = 0; i < n; ++i) {
          // Also true if only the value is NaN; || would cause a branch.
          const bool better = !(value[i] <= best[i]) & (best[i] == best[i]);
          best[i] = better ? value[i] : best[i];
          index[i] = better ? cell : index[i];
        }
      }
  }
};

template <typename T>
void pool(const RoiPoolSizes& sizes, const T* input, const T* rois, T spatial_scale, T* output,
          int32_t* argmax) {
  const int64_t n = sizes.channels, bins = sizes.bins();
  if (n == 0) return;
  torch::stable::parallel_for(0, sizes.rois, grain(n * bins * 8), [&](int64_t begin, int64_t end) {
    std::vector<T> best(n * bins);
    std::vector<int32_t> index(n * bins);
    for (int64_t r = begin; r < end; ++r) {
      const T* roi = rois + r * 5;
      std::fill(best.begin(), best.end(), T(0));
      std::fill(index.begin(), index.end(), -1);
      if (is_valid_roi(roi, sizes.images)) {
        const T* map = input + static_cast<int64_t>(roi[0]) * sizes.height * sizes.width * n;
        const RoiPoolAxis<T> x(roi[1], roi[3], spatial_scale, sizes.pooled);
        const RoiPoolAxis<T> y(roi[2], roi[4], spatial_scale, sizes.pooled);
        for (int64_t bin = 0; bin < bins; ++bin) {
          const CellRange rows = y.cells(static_cast<int>(bin / sizes.pooled), sizes.height);
          const CellRange columns = x.cells(static_cast<int>(bin % sizes.pooled), sizes.width);
          if (rows.size() > 0 && columns.size() > 0)
            vectorized<MaxCells>(map, rows, columns, sizes.width, n, &best[bin * n], &index[bin * n]);
        }
      }
      vectorized<TransposeMatrix>(best.data(), n, bins, n, output + r * n * bins, bins);
      vectorized<TransposeMatrix>(index.data(), n, bins, n, argmax + r * n * bins, bins);
    }
  });
}

// A separate function, so that its arguments stay in registers: a lambda's captures would be reloaded after
// every write.
template <typename T>
void spread_maxima(const T* grad, const int32_t* cells, int64_t bins, uint32_t plane, T* target) {
  for (int64_t bin = 0; bin < bins; ++bin)
    if (const uint32_t cell = cells[bin]; cell < plane) target[cell] += grad[bin];
}

// grad_input may be uninitialized.
template <typename T>
void pool_backward(const RoiPoolSizes& sizes, const T* grad_output, const T* rois, const int32_t* argmax,
                   T* grad_input) {
  // Channels whose planes stay in the cache while all regions are read in order.
  constexpr int64_t kBlock = 32;
  const int64_t bins = sizes.bins(), plane = int64_t(sizes.height) * sizes.width, channels = sizes.channels;
  const int64_t blocks = (channels + kBlock - 1) / kBlock;
  torch::stable::parallel_for(0, blocks, grain(sizes.rois * bins * kBlock), [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * kBlock, size = std::min(kBlock, channels - first);
      for (int64_t image = 0; image < sizes.images; ++image)
        std::fill_n(grad_input + (image * channels + first) * plane, size * plane, T(0));
      for (int64_t r = 0; r < sizes.rois; ++r) {
        const T* roi = rois + r * 5;
        if (!is_valid_roi(roi, sizes.images)) continue;
        T* target = grad_input + (static_cast<int64_t>(roi[0]) * channels + first) * plane;
        int64_t bin = (r * channels + first) * bins;
        for (int64_t c = 0; c < size; ++c, target += plane, bin += bins) {
          // The same channel of the next region, `channels` planes of bins further.
          for (int64_t ahead = bin + channels * bins; ahead < bin + (channels + 1) * bins; ahead += 16) {
            __builtin_prefetch(grad_output + ahead);
            __builtin_prefetch(argmax + ahead);
          }
          spread_maxima(grad_output + bin, argmax + bin, bins, plane, target);
        }
      }
    }
  });
}

template <typename T>
std::tuple<Tensor, Tensor> forward(const Tensor& input, const Tensor& rois, const RoiPoolSizes& sizes,
                                   double spatial_scale) {
  const Tensor map = torch::stable::contiguous(cast(input, accumulate_dtype(input.scalar_type())),
                                               MemoryFormat::ChannelsLast);
  const std::initializer_list<int64_t> shape = {sizes.rois, sizes.channels, sizes.pooled, sizes.pooled};
  Tensor output = uninitialized(map, shape);
  Tensor argmax = uninitialized(map, shape, ScalarType::Int);
  pool(sizes, map.template const_data_ptr<T>(), rois.const_data_ptr<T>(), static_cast<T>(spatial_scale),
       output.template mutable_data_ptr<T>(), argmax.mutable_data_ptr<int32_t>());
  return {cast(output, input.scalar_type()), argmax};
}

template <typename T>
Tensor backward(const Tensor& grad_output, const Tensor& rois, const Tensor& argmax,
                const RoiPoolSizes& sizes) {
  const ScalarType type = accumulate_dtype(grad_output.scalar_type());
  const Tensor grad = dense(cast(grad_output, type));
  Tensor grad_input = uninitialized(grad, {sizes.images, sizes.channels, sizes.height, sizes.width});
  pool_backward(sizes, grad.template const_data_ptr<T>(), rois.const_data_ptr<T>(),
                argmax.const_data_ptr<int32_t>(), grad_input.template mutable_data_ptr<T>());
  return grad_input;
}

std::tuple<Tensor, Tensor> roi_pool(const Tensor& input, const Tensor& rois, double spatial_scale,
                                    int64_t pooled_size) {
  const RoiPoolSizes sizes = roi_pool_sizes(input, rois, pooled_size);
  const auto run = input.scalar_type() == ScalarType::Double ? forward<double> : forward<float>;
  return run(input, dense(rois), sizes, spatial_scale);
}

Tensor roi_pool_backward(const Tensor& grad_output, const Tensor& rois, const Tensor& argmax, int64_t batch,
                         int64_t height, int64_t width) {
  const RoiPoolSizes sizes = roi_pool_sizes(grad_output, rois, argmax, batch, height, width);
  const auto run = grad_output.scalar_type() == ScalarType::Double ? backward<double> : backward<float>;
  return cast(run(grad_output, dense(rois), dense(argmax), sizes), grad_output.scalar_type());
}

}  // namespace
}  // namespace dcn_det

STABLE_TORCH_LIBRARY_IMPL(dcn_det, CPU, m) {
  m.impl("roi_pool", TORCH_BOX(&dcn_det::roi_pool));
  m.impl("roi_pool_backward", TORCH_BOX(&dcn_det::roi_pool_backward));
  m.impl("roi_pool_backward_deterministic", TORCH_BOX(&dcn_det::roi_pool_backward));
}
