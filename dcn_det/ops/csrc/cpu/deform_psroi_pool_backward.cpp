// Deformable position-sensitive RoI pooling on the CPU: backward.
#include "cpu/no_contraction.h"

#include <tuple>

#include "cpu/deform_psroi_pool.h"
#include "cpu/large_pages.h"

namespace dcn_det {
namespace {

template <typename T>
void backward_over_regions(const DeformPsroiProblem<T>& problem, const T* grad_output, const T* input,
                           T* grad_input, T* grad_offset) {
  const DeformPsroiSizes& sizes = problem.sizes;
  const int64_t bins = problem.bins, per_class = sizes.channels_per_class(), pairs = problem.class_stride;
  const int64_t cells = int64_t(sizes.height) * sizes.width, part = sizes.offset_plane();
  const int64_t planes = int64_t(sizes.group) * sizes.group;
  const auto blocks = lane_blocks(problem);
  const int64_t count = static_cast<int64_t>(blocks.size());

  const int64_t work = sizes.rois * bins * per_class * 128;
  torch::stable::parallel_for(0, sizes.classes, grain(work), [&](int64_t begin, int64_t end) {
    LaneSweep<T> sweep(problem, blocks, grad_offset != nullptr);
    LanePlanes<T> maps(per_class, sizes.height, sizes.width), grad_maps(per_class, sizes.height, sizes.width);
    std::vector<T> moves(grad_offset != nullptr ? count * pairs * kLanes : 0);
    std::vector<T> grads(count * per_class * bins * kLanes);
    const auto grads_of = [&](int64_t b, int64_t c) { return &grads[(b * per_class + c) * bins * kLanes]; };

    for (int64_t u = begin; u < end; ++u) {
      std::fill(moves.begin(), moves.end(), T(0));
      for (int64_t b = 0; b < count; ++b)
        for (int64_t c = 0; c < per_class; ++c)
          load_lanes(grad_output + (u * per_class + c) * bins, sizes.output_dim * bins, bins, blocks[b],
                     grads_of(b, c));
      const auto first_cell = [&](int64_t image, int64_t c, int64_t plane) {
        return (image * sizes.input_channels() + (u * per_class + c) * planes + plane) * cells;
      };
      const auto enter = [&](int64_t image, int64_t plane) {
        for (int64_t c = 0; c < per_class; ++c) {
          if (grad_offset != nullptr) maps.load(c, input + first_cell(image, c, plane));
          if (grad_input != nullptr) grad_maps.clear(c);
        }
      };
      const auto visit = [&](int64_t b, int bin) {
        T* move =
            grad_offset != nullptr ? &moves[(b * pairs + problem.offset_of_bin[bin]) * kLanes] : nullptr;
        for (int64_t c = 0; c < per_class; ++c) {
          const T* grad = grads_of(b, c) + bin * kLanes;
          if (grad_input != nullptr)
            vectorized<SpreadLanes>(grad_maps[c], sweep.y, sweep.x, grad, blocks[b].active);
          if (move != nullptr)
            vectorized<MoveLanes>(maps[c], sweep.y, sweep.x, grad, move, move + part * kLanes);
        }
      };
      const auto leave = [&](int64_t image, int64_t plane) {
        for (int64_t c = 0; c < per_class && grad_input != nullptr; ++c)
          grad_maps.store(c, grad_input + first_cell(image, c, plane));
      };
      sweep.run(u, enter, visit, leave);
      for (int64_t b = 0; b < count && grad_offset != nullptr; ++b) {
        T* move = &moves[b * pairs * kLanes];
        for (int64_t i = 0; i < pairs; ++i)
          for (int l = 0; l < kLanes; ++l) {
            const int64_t r = blocks[b].regions[l];
            move[i * kLanes + l] *= i < part ? problem.offset_scale_x(r) : problem.offset_scale_y(r);
          }
        store_lanes(move, pairs, blocks[b], grad_offset + u * pairs, sizes.classes * pairs);
      }
    }
  });
}

// Sums the gradients of an offset over the tiles of its class and the bins of its part.
template <typename T>
void sum_offset_gradients(const DeformPsroiProblem<T>& problem, const std::vector<ChannelTile>& tiles,
                          const T* position_grads, T* grad_offset) {
  const DeformPsroiSizes& sizes = problem.sizes;
  const int64_t bins = problem.bins, count = static_cast<int64_t>(tiles.size());
  torch::stable::parallel_for(0, sizes.rois, grain(count * bins * 2), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      for (int64_t t = 0; t < count; ++t) {
        const T* pair = position_grads + (t * sizes.rois + r) * bins * 2;
        T* targets = grad_offset + (r * sizes.classes + tiles[t].class_) * problem.class_stride;
        for (int64_t bin = 0; bin < bins; ++bin, pair += 2) {
          T* target = targets + problem.offset_of_bin[bin];
          target[0] += pair[0] * problem.offset_scale_x(r);
          target[sizes.offset_plane()] += pair[1] * problem.offset_scale_y(r);
        }
      }
  });
}

template <typename T>
void backward_over_channels(const DeformPsroiProblem<T>& problem, const T* grad_output, const T* input,
                            bool in_place, T* grad_input, T* grad_offset) {
  const CellPlan<T> plan = plan_cells(problem, grad_offset != nullptr);
  const auto tiles = plan.tiles(kTileChannels);
  std::vector<T> position_grads(grad_offset != nullptr ? tiles.size() * problem.sizes.rois * problem.bins * 2
                                                       : 0);
  T* pairs = grad_offset != nullptr ? position_grads.data() : nullptr;
  spread_cells(plan, grad_output, input, grad_input, in_place, pairs);
  if (grad_offset != nullptr) sum_offset_gradients(problem, tiles, pairs, grad_offset);
}

template <typename T>
std::tuple<Tensor, Tensor> backward(const Tensor& grad_output, const Tensor& input, const Tensor& rois,
                                    const std::optional<Tensor>& offset, const DeformPsroiSizes& sizes,
                                    double spatial_scale, double offset_std, bool need_input,
                                    bool need_offset) {
  const DeformPsroiProblem<T> problem(sizes, rois, offset, spatial_scale, offset_std);
  const ScalarType type = accumulate_dtype(input.scalar_type());
  const Tensor map = problem.readable(cast(input, type));
  const Tensor grad = dense(cast(grad_output, type));
  Tensor grad_map = need_input ? in_large_pages(torch::stable::empty_like(map)) : uninitialized(map, {0});
  Tensor grad_offset = need_offset ? torch::stable::empty_like(*offset) : uninitialized(rois, {0});
  if (need_offset) torch::stable::zero_(grad_offset);
  if (map.numel() > 0) {
    const T *grad_data = grad.template const_data_ptr<T>(), *map_data = map.template const_data_ptr<T>();
    T* grad_map_data = need_input ? grad_map.template mutable_data_ptr<T>() : nullptr;
    T* grad_offset_data = need_offset ? grad_offset.template mutable_data_ptr<T>() : nullptr;
    if (problem.over_channels())
      backward_over_channels(problem, grad_data, map_data, reads_in_place(sizes, map), grad_map_data,
                             grad_offset_data);
    else
      backward_over_regions(problem, grad_data, map_data, grad_map_data, grad_offset_data);
  }
  // The map is the input itself if its dtype and layout suit the loops.
  if (!need_input || map.const_data_ptr() == input.const_data_ptr()) {
    if (need_input || input.scalar_type() == type) return {grad_map, grad_offset};
    return {uninitialized(input, {0}), grad_offset};
  }
  Tensor grad_input = torch::stable::empty_like(input);
  torch::stable::copy_(grad_input, grad_map);
  return {grad_input, grad_offset};
}

std::tuple<Tensor, Tensor> deform_psroi_pool_backward(const Tensor& grad_output, const Tensor& input,
                                                      const Tensor& rois, std::optional<Tensor> offset,
                                                      double spatial_scale, int64_t output_dim,
                                                      int64_t group_size, int64_t pooled_size,
                                                      int64_t part_size, int64_t samples_per_bin,
                                                      double offset_std, bool need_input, bool need_offset) {
  const auto sizes = deform_psroi_sizes(input, rois, offset, output_dim, group_size, pooled_size, part_size,
                                        samples_per_bin);
  check_grad(grad_output, input, {sizes.rois, output_dim, pooled_size, pooled_size});
  STD_TORCH_CHECK(offset || !need_offset, "need_offset must be false without offset");
  const Tensor rows = dense(rois);
  if (offset) offset = dense(*offset);
  const auto run = input.scalar_type() == ScalarType::Double ? backward<double> : backward<float>;
  return run(grad_output, input, rows, offset, sizes, spatial_scale, offset_std, need_input, need_offset);
}

}  // namespace
}  // namespace dcn_det

STABLE_TORCH_LIBRARY_IMPL(dcn_det, CPU, m) {
  m.impl("deform_psroi_pool_backward", TORCH_BOX(&dcn_det::deform_psroi_pool_backward));
  m.impl("deform_psroi_pool_backward_deterministic", TORCH_BOX(&dcn_det::deform_psroi_pool_backward));
}
