// Deformable position-sensitive RoI pooling on the CPU: backward.
#include <tuple>

#include "cpu/deform_psroi_pool.h"

namespace dcn_det {
namespace {

constexpr int64_t kVectorBlock = 32;
constexpr int64_t kPlaneBlock = 1;

// What one bin does to n <= kVectorBlock channels that lie side by side: spreads their gradient over the
// cells of grad_map, and sums the derivatives with respect to the bin's position. Either target may be null.
template <typename T>
DCN_DET_INLINE void spread_cells(const T* map, T* grad_map, const T* grad, const Cells<T>& y,
                                 const Cells<T>& x, T scale, int64_t n, T* position_grad) {
  T sum_x[kVectorBlock] = {}, sum_y[kVectorBlock] = {};
  for (int a = 0; a < y.size; ++a)
    for (int b = 0; b < x.size; ++b) {
      const int64_t cell = y.offset[a] + x.offset[b];
      if (grad_map != nullptr) {
        const T weight = scale * y.weight[a] * x.weight[b];
        T* target = grad_map + cell;
#pragma omp simd
        for (int64_t i = 0; i < n; ++i) target[i] += weight * grad[i];
      }
      if (position_grad != nullptr) {
        const T slope_x = y.weight[a] * x.slope[b], slope_y = y.slope[a] * x.weight[b];
        const T* value = map + cell;
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
  position_grad[0] = scale * total_x;
  position_grad[1] = scale * total_y;
}

// A full block gets loops of constant length.
struct SpreadBlock {
  template <typename T>
  DCN_DET_INLINE static void run(const T* map, T* grad_map, const T* grad, const Cells<T>& y,
                                 const Cells<T>& x, T scale, int64_t n, T* position_grad) {
    if (n == kVectorBlock)
      spread_cells(map, grad_map, grad, y, x, scale, kVectorBlock, position_grad);
    else
      spread_cells(map, grad_map, grad, y, x, scale, n, position_grad);
  }
};

// The same for one plane and the gradient of one value; adds to position_grad.
template <typename T>
void spread_plane(const T* plane, T* grad_plane, T grad, const Cells<T>& y, const Cells<T>& x,
                  T* position_grad) {
  T total_x = 0, total_y = 0;
  for (int a = 0; a < y.size; ++a) {
    if (grad_plane != nullptr) {
      T* target = grad_plane + y.offset[a];
      const T row_grad = grad * y.weight[a];
      for (int b = 0; b < x.size; ++b) target[x.offset[b]] += row_grad * x.weight[b];
    }
    if (position_grad != nullptr) {
      const T* row = plane + y.offset[a];
      T row_sum = 0, row_slope = 0;
      for (int b = 0; b < x.size; ++b) {
        row_sum += x.weight[b] * row[x.offset[b]];
        row_slope += x.slope[b] * row[x.offset[b]];
      }
      total_x += y.weight[a] * row_slope;
      total_y += y.slope[a] * row_sum;
    }
  }
  if (position_grad == nullptr) return;
  position_grad[0] += grad * total_x;
  position_grad[1] += grad * total_y;
}

// Adds up what the blocks of a class and the bins of a part say about an offset.
template <typename T>
void sum_offset_gradients(const DeformPsroiProblem<T>& problem, const std::vector<Block>& blocks,
                          const T* position_grads, T* grad_trans) {
  const DeformPsroiSizes& sizes = problem.sizes;
  const int64_t bins = problem.bins, count = blocks.size();
  torch::stable::parallel_for(0, sizes.rois, grain(count * bins * 2), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      for (int64_t b = 0; b < count; ++b) {
        const T* pair = position_grads + (b * sizes.rois + r) * bins * 2;
        T* targets = grad_trans + (r * sizes.classes + blocks[b].class_) * problem.class_stride;
        for (int64_t bin = 0; bin < bins; ++bin, pair += 2) {
          T* target = targets + problem.offset_of_bin[bin];
          target[0] += pair[0] * problem.offset_scale_x(r);
          target[sizes.offset_plane()] += pair[1] * problem.offset_scale_y(r);
        }
      }
  });
}

template <typename T>
void pool_backward(const DeformPsroiProblem<T>& problem, const T* grad_output, const T* input, T* grad_input,
                   T* grad_trans) {
  const DeformPsroiSizes& sizes = problem.sizes;
  const int64_t bins = problem.bins;
  const auto blocks = problem.blocks(problem.channels_last ? kVectorBlock : kPlaneBlock);
  const int64_t count = blocks.size(), work = sizes.rois * bins * 32 * blocks[0].size();
  std::vector<T> position_grads(grad_trans != nullptr ? count * sizes.rois * bins * 2 : 0);

  // One bin of one block: problem.read_bin has found y and x.
  const auto spread = [&](int64_t r, int64_t b, int64_t bin, T scale, const Cells<T>& y, const Cells<T>& x) {
    const Block& block = blocks[b];
    const int64_t map = problem.map_offset(problem.rois[r].image, block.begin, bin);
    const T* grad = grad_output + (r * sizes.output_dim + block.begin) * bins + bin;
    T* pair = grad_trans != nullptr ? &position_grads[((b * sizes.rois + r) * bins + bin) * 2] : nullptr;
    if (problem.channels_last) {
      T grads[kVectorBlock];
      for (int64_t c = 0; c < block.size(); ++c) grads[c] = grad[c * bins];
      vectorized<SpreadBlock>(input + map, grad_input != nullptr ? grad_input + map : nullptr, grads, y, x,
                              scale, block.size(), pair);
      return;
    }
    for (int64_t c = 0; c < block.size(); ++c) {
      const int64_t plane = map + c * problem.channel_stride;
      spread_plane(input + plane, grad_input != nullptr ? grad_input + plane : nullptr,
                   scale * grad[c * bins], y, x, pair);
    }
  };

  torch::stable::parallel_for(0, count, grain(work), [&](int64_t begin, int64_t end) {
    Cells<T> y(sizes.samples), x(sizes.samples);
    for (int64_t first = begin, last; first < end; first = last) {
      // Blocks of one class share their cells.
      for (last = first + 1; last < end && blocks[last].class_ == blocks[first].class_;) ++last;
      for (int64_t r = 0; r < sizes.rois; ++r)
        for (int64_t bin = 0; bin < bins && problem.rois[r].valid; ++bin) {
          const int samples = problem.read_bin(r, blocks[first].class_, bin, y, x);
          const T scale = samples > 0 ? T(1) / static_cast<T>(samples) : T(0);
          for (int64_t b = first; b < last && samples > 0; ++b) spread(r, b, bin, scale, y, x);
        }
    }
  });
  if (grad_trans != nullptr) sum_offset_gradients(problem, blocks, position_grads.data(), grad_trans);
}

template <typename T>
std::tuple<Tensor, Tensor> backward(const Tensor& grad_output, const Tensor& input, const Tensor& rois,
                                    const std::optional<Tensor>& trans, const DeformPsroiSizes& sizes,
                                    double spatial_scale, double trans_std, bool need_input,
                                    bool need_trans) {
  const DeformPsroiProblem<T> problem(sizes, rois, trans, spatial_scale, trans_std);
  const ScalarType type = accumulate_dtype(input.scalar_type());
  const Tensor map = torch::stable::contiguous(cast(input, type), problem.format());
  const Tensor grad = torch::stable::contiguous(cast(grad_output, type));
  Tensor grad_map = torch::stable::new_empty(map, {0});
  Tensor grad_trans = torch::stable::new_empty(rois, {0});
  if (need_input) {
    grad_map = torch::stable::empty_like(map);
    torch::stable::zero_(grad_map);
  }
  if (need_trans) {
    grad_trans = torch::stable::empty_like(*trans);
    torch::stable::zero_(grad_trans);
  }
  if (grad.numel() > 0 && map.numel() > 0)
    pool_backward(problem, grad.template const_data_ptr<T>(), map.template const_data_ptr<T>(),
                  need_input ? grad_map.template mutable_data_ptr<T>() : nullptr,
                  need_trans ? grad_trans.template mutable_data_ptr<T>() : nullptr);
  // The map is the input itself where dtype and layout suit the loops.
  const bool in_layout = map.const_data_ptr() == input.const_data_ptr();
  if (in_layout && need_input) return {grad_map, grad_trans};
  Tensor grad_input = need_input ? torch::stable::empty_like(input) : torch::stable::new_empty(input, {0});
  if (need_input) torch::stable::copy_(grad_input, grad_map);
  return {grad_input, grad_trans};
}

std::tuple<Tensor, Tensor> deform_psroi_pool_backward(const Tensor& grad_output, const Tensor& input,
                                                      const Tensor& rois, std::optional<Tensor> trans,
                                                      double spatial_scale, int64_t output_dim,
                                                      int64_t group_size, int64_t pooled_size,
                                                      int64_t part_size, int64_t sample_per_part,
                                                      double trans_std, bool need_input, bool need_trans) {
  const auto sizes =
      deform_psroi_sizes(input, rois, trans, output_dim, group_size, pooled_size, part_size, sample_per_part);
  check_grad(grad_output, input, {sizes.rois, output_dim, pooled_size, pooled_size});
  STD_TORCH_CHECK(trans || !need_trans, "there is no gradient of trans without trans");
  const Tensor rows = torch::stable::contiguous(rois);
  if (trans) trans = torch::stable::contiguous(*trans);
  const auto run = input.scalar_type() == ScalarType::Double ? backward<double> : backward<float>;
  return run(grad_output, input, rows, trans, sizes, spatial_scale, trans_std, need_input, need_trans);
}

}  // namespace
}  // namespace dcn_det

STABLE_TORCH_LIBRARY_IMPL(dcn_det, CPU, m) {
  m.impl("deform_psroi_pool_backward", TORCH_BOX(&dcn_det::deform_psroi_pool_backward));
}
