// Deformable position-sensitive RoI pooling on CUDA: launches of the kernels in deform_psroi_pool.cuh.
#include <cuda_runtime.h>

#include <tuple>

#include "common/roi_arguments.h"
#include "cuda/deform_psroi_pool.cuh"
#include "cuda/launch.h"

namespace dcn_det {
namespace {

template <typename A>
DeformPsroiRegions<A> regions_of(const Tensor& rois, const std::optional<Tensor>& trans, double spatial_scale,
                                 double trans_std) {
  return {rois.const_data_ptr<A>(), trans ? trans->const_data_ptr<A>() : nullptr,
          static_cast<A>(spatial_scale), static_cast<A>(trans_std)};
}

// How many lanes share the work for an offset: as many as find some, at most a warp.
int lanes_for(const DeformPsroiSizes& sizes) {
  const int64_t bins = (sizes.pooled + sizes.part - 1) / sizes.part;
  const int64_t items = sizes.channels_per_class() * bins * bins;
  int lanes = 1;
  while (lanes < kWarp && lanes < items) lanes *= 2;
  return lanes;
}

Tensor deform_psroi_pool(const Tensor& input, const Tensor& rois, std::optional<Tensor> trans,
                         double spatial_scale, int64_t output_dim, int64_t group_size, int64_t pooled_size,
                         int64_t part_size, int64_t sample_per_part, double trans_std) {
  const auto sizes =
      deform_psroi_sizes(input, rois, trans, output_dim, group_size, pooled_size, part_size, sample_per_part);
  const DeviceGuard guard(input.get_device_index());
  const Tensor map = torch::stable::contiguous(input), rows = torch::stable::contiguous(rois);
  if (trans) trans = torch::stable::contiguous(*trans);
  Tensor output = torch::stable::new_empty(input, {sizes.rois, output_dim, pooled_size, pooled_size});
  if (output.numel() == 0) return output;
  if (map.numel() == 0) return torch::stable::zero_(output);
  dispatch_floating(input.scalar_type(), "deform_psroi_pool", [&]<typename T>() {
    using A = accumulate_t<T>;
    deform_psroi_pool_kernel<T, A><<<blocks_for(output.numel()), kThreads, 0, current_stream(input)>>>(
        sizes, regions_of<A>(rows, trans, spatial_scale, trans_std), map.template const_data_ptr<T>(),
        output.template mutable_data_ptr<T>());
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return output;
}

template <bool kDeterministic>
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
  const DeviceGuard guard(input.get_device_index());
  const Tensor map = torch::stable::contiguous(input), rows = torch::stable::contiguous(rois);
  const Tensor grad = torch::stable::contiguous(grad_output);
  if (trans) trans = torch::stable::contiguous(*trans);
  Tensor grad_input = torch::stable::new_empty(rois, {0}), grad_trans = torch::stable::new_empty(rois, {0});
  if (need_input) grad_input = new_zeros(rois, {input.size(0), input.size(1), input.size(2), input.size(3)});
  if (need_trans) grad_trans = new_zeros(rois, {sizes.rois, trans->size(1), part_size, part_size});
  if (grad.numel() > 0 && map.numel() > 0) {
    const cudaStream_t stream = current_stream(input);
    dispatch_floating(input.scalar_type(), "deform_psroi_pool_backward", [&]<typename T>() {
      using A = accumulate_t<T>;
      const auto regions = regions_of<A>(rows, trans, spatial_scale, trans_std);
      const T* grads = grad.template const_data_ptr<T>();
      if (need_input) {
        const double terms = static_cast<double>(sizes.rois) * sizes.bins();
        add_up<A>(grad_input, kDeterministic, terms, {grad}, [&](const auto& sums) {
          deform_psroi_pool_grad_input_kernel<T, A>
              <<<blocks_for(grad.numel()), kThreads, 0, stream>>>(sizes, regions, grads, sums);
        });
      }
      if (need_trans) {
        const int lanes = lanes_for(sizes);
        deform_psroi_pool_grad_trans_kernel<T, A>
            <<<blocks_for(grad_trans.numel() / 2 * lanes), kThreads, 0, stream>>>(
                sizes, regions, map.template const_data_ptr<T>(), grads,
                grad_trans.template mutable_data_ptr<A>(), lanes);
      }
    });
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return {need_input ? in_layout_of(input, grad_input) : torch::stable::new_empty(input, {0}), grad_trans};
}

}  // namespace
}  // namespace dcn_det

STABLE_TORCH_LIBRARY_IMPL(dcn_det, CUDA, m) {
  m.impl("deform_psroi_pool", TORCH_BOX(&dcn_det::deform_psroi_pool));
  m.impl("deform_psroi_pool_backward", TORCH_BOX(&dcn_det::deform_psroi_pool_backward<false>));
  m.impl("deform_psroi_pool_backward_deterministic", TORCH_BOX(&dcn_det::deform_psroi_pool_backward<true>));
}
