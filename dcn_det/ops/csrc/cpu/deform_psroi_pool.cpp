// Deformable position-sensitive RoI pooling on the CPU: forward.
#include "cpu/no_contraction.h"

#include "cpu/deform_psroi_pool.h"

namespace dcn_det {
namespace {

template <typename T>
void pool_over_regions(const DeformPsroiProblem<T>& problem, const T* input, T* output) {
  const DeformPsroiSizes& sizes = problem.sizes;
  const int64_t bins = problem.bins, per_class = sizes.channels_per_class();
  const int64_t cells = int64_t(sizes.height) * sizes.width, planes = int64_t(sizes.group) * sizes.group;
  const auto blocks = lane_blocks(problem);
  const int64_t count = static_cast<int64_t>(blocks.size());
  for (int64_t r = 0; r < sizes.rois; ++r)
    if (!problem.rois[r].valid)
      std::fill_n(output + r * sizes.output_dim * bins, sizes.output_dim * bins, T(0));
  const int64_t work = sizes.rois * bins * per_class * 64;
  torch::stable::parallel_for(0, sizes.classes, grain(work), [&](int64_t begin, int64_t end) {
    LaneSweep<T> sweep(problem, blocks, false);
    LanePlanes<T> maps(per_class, sizes.height, sizes.width);
    std::vector<T> sums(count * per_class * bins * kLanes);
    const auto sums_of = [&](int64_t b, int64_t c) { return &sums[(b * per_class + c) * bins * kLanes]; };
    for (int64_t u = begin; u < end; ++u) {
      const auto enter = [&](int64_t image, int64_t plane) {
        const T* from = input + (image * sizes.input_channels() + u * per_class * planes + plane) * cells;
        for (int64_t c = 0; c < per_class; ++c) maps.load(c, from + c * planes * cells);
      };
      const auto visit = [&](int64_t b, int bin) {
        for (int64_t c = 0; c < per_class; ++c)
          vectorized<SumLanes>(maps[c], sweep.y, sweep.x, sums_of(b, c) + bin * kLanes);
      };
      sweep.run(u, enter, visit, [](int64_t, int64_t) {});
      for (int64_t b = 0; b < count; ++b)
        for (int64_t c = 0; c < per_class; ++c)
          store_lanes(sums_of(b, c), bins, blocks[b], output + (u * per_class + c) * bins,
                      sizes.output_dim * bins);
    }
  });
}

template <typename T>
Tensor forward(const Tensor& input, const Tensor& rois, const std::optional<Tensor>& offset,
               const DeformPsroiSizes& sizes, double spatial_scale, double offset_std) {
  const DeformPsroiProblem<T> problem(sizes, rois, offset, spatial_scale, offset_std);
  const Tensor map = problem.readable(cast(input, accumulate_dtype(input.scalar_type())));
  if (problem.over_channels()) return pool_cells(plan_cells(problem, false), map);
  Tensor output = uninitialized(map, {sizes.rois, sizes.output_dim, sizes.pooled, sizes.pooled});
  if (output.numel() == 0) return output;
  if (map.numel() == 0) return torch::stable::zero_(output);
  pool_over_regions(problem, map.template const_data_ptr<T>(), output.template mutable_data_ptr<T>());
  return output;
}

Tensor deform_psroi_pool(const Tensor& input, const Tensor& rois, std::optional<Tensor> offset,
                         double spatial_scale, int64_t output_dim, int64_t group_size, int64_t pooled_size,
                         int64_t part_size, int64_t samples_per_bin, double offset_std) {
  const auto sizes = deform_psroi_sizes(input, rois, offset, output_dim, group_size, pooled_size, part_size,
                                        samples_per_bin);
  const Tensor rows = dense(rois);
  if (offset) offset = dense(*offset);
  const auto run = input.scalar_type() == ScalarType::Double ? forward<double> : forward<float>;
  return cast(run(input, rows, offset, sizes, spatial_scale, offset_std), input.scalar_type());
}

}  // namespace
}  // namespace dcn_det

STABLE_TORCH_LIBRARY_IMPL(dcn_det, CPU, m) {
  m.impl("deform_psroi_pool", TORCH_BOX(&dcn_det::deform_psroi_pool));
}
