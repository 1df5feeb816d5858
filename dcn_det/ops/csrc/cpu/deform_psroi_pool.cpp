// Deformable position-sensitive RoI pooling on the CPU: forward.
#include "cpu/deform_psroi_pool.h"

namespace dcn_det {
namespace {

constexpr int64_t kPlaneBlock = 4;

// sum[0, n) = scale * the weighted cells of n channels that lie side by side.
struct SumCells {
  template <typename T>
  DCN_DET_INLINE static void run(const T* map, const Cells<T>& y, const Cells<T>& x, T scale, int64_t n,
                                 T* sum) {
    for (int64_t i = 0; i < n; ++i) sum[i] = 0;
    for (int a = 0; a < y.size; ++a) {
      const T* row = map + y.offset[a];
      const T row_weight = y.weight[a] * scale;
      int b = 0;
      for (; b + 1 < x.size; b += 2) {
        const T *left = row + x.offset[b], *right = row + x.offset[b + 1];
        const T left_weight = row_weight * x.weight[b], right_weight = row_weight * x.weight[b + 1];
#pragma omp simd
        for (int64_t i = 0; i < n; ++i) sum[i] += left_weight * left[i] + right_weight * right[i];
      }
      if (b < x.size) {
        const T* last = row + x.offset[b];
        const T last_weight = row_weight * x.weight[b];
#pragma omp simd
        for (int64_t i = 0; i < n; ++i) sum[i] += last_weight * last[i];
      }
    }
  }
};

template <typename T>
T pool_plane(const T* plane, const Cells<T>& y, const Cells<T>& x) {
  T sum = 0;
  for (int a = 0; a < y.size; ++a) {
    const T* row = plane + y.offset[a];
    T row_sum = 0;
    for (int b = 0; b < x.size; ++b) row_sum += x.weight[b] * row[x.offset[b]];
    sum += y.weight[a] * row_sum;
  }
  return sum;
}

template <typename T>
void pool(const DeformPsroiProblem<T>& problem, const T* input, T* output) {
  const DeformPsroiSizes& sizes = problem.sizes;
  const int64_t bins = problem.bins;
  const auto blocks = problem.blocks(problem.channels_last ? sizes.channels_per_class() : kPlaneBlock);
  const int64_t items = static_cast<int64_t>(blocks.size()) * sizes.rois;
  torch::stable::parallel_for(0, items, grain(bins * 16 * blocks[0].size()), [&](int64_t begin, int64_t end) {
    Cells<T> y(sizes.samples), x(sizes.samples);
    std::vector<T> by_bin(problem.channels_last ? blocks[0].size() * bins : 0);
    for (int64_t item = begin; item < end; ++item) {
      const Block& block = blocks[item / sizes.rois];
      const int64_t r = item % sizes.rois, channels = block.size();
      T* out = output + (r * sizes.output_dim + block.begin) * bins;
      if (!problem.rois[r].valid) {
        std::fill(out, out + channels * bins, T(0));
        continue;
      }
      for (int64_t bin = 0; bin < bins; ++bin) {
        const int count = problem.read_bin(r, block.class_, bin, y, x);
        const T scale = count > 0 ? T(1) / static_cast<T>(count) : T(0);
        const T* map = input + problem.map_offset(problem.rois[r].image, block.begin, bin);
        if (problem.channels_last)
          vectorized<SumCells>(map, y, x, scale, channels, &by_bin[bin * channels]);
        else
          for (int64_t c = 0; c < channels; ++c)
            out[c * bins + bin] = scale * pool_plane(map + c * problem.channel_stride, y, x);
      }
      if (problem.channels_last) transpose(by_bin.data(), bins, channels, out);
    }
  });
}

template <typename T>
Tensor forward(const Tensor& input, const Tensor& rois, const std::optional<Tensor>& trans,
               const DeformPsroiSizes& sizes, double spatial_scale, double trans_std) {
  const DeformPsroiProblem<T> problem(sizes, rois, trans, spatial_scale, trans_std);
  const Tensor map =
      torch::stable::contiguous(cast(input, accumulate_dtype(input.scalar_type())), problem.format());
  Tensor output = torch::stable::new_empty(map, {sizes.rois, sizes.output_dim, sizes.pooled, sizes.pooled});
  if (output.numel() == 0) return output;
  if (map.numel() == 0) return torch::stable::zero_(output);
  pool(problem, map.template const_data_ptr<T>(), output.template mutable_data_ptr<T>());
  return output;
}

Tensor deform_psroi_pool(const Tensor& input, const Tensor& rois, std::optional<Tensor> trans,
                         double spatial_scale, int64_t output_dim, int64_t group_size, int64_t pooled_size,
                         int64_t part_size, int64_t sample_per_part, double trans_std) {
  const auto sizes =
      deform_psroi_sizes(input, rois, trans, output_dim, group_size, pooled_size, part_size, sample_per_part);
  const Tensor rows = torch::stable::contiguous(rois);
  if (trans) trans = torch::stable::contiguous(*trans);
  const auto run = input.scalar_type() == ScalarType::Double ? forward<double> : forward<float>;
  return cast(run(input, rows, trans, sizes, spatial_scale, trans_std), input.scalar_type());
}

}  // namespace
}  // namespace dcn_det

STABLE_TORCH_LIBRARY_IMPL(dcn_det, CPU, m) {
  m.impl("deform_psroi_pool", TORCH_BOX(&dcn_det::deform_psroi_pool));
}
