// Position-sensitive RoI pooling on CUDA: launches the kernels of psroi_pool.cuh.
#include <cuda_runtime.h>

#include "common/roi_arguments.h"
#include "cuda/launch.h"
#include "cuda/psroi_pool.cuh"

namespace dcn_det {
namespace {

Tensor psroi_pool(const Tensor& input, const Tensor& rois, double spatial_scale, int64_t output_dim,
                  int64_t group_size, int64_t pooled_size) {
  const PsroiSizes sizes = psroi_sizes(input, rois, output_dim, group_size, pooled_size);
  const DeviceGuard guard(input.get_device_index());
  const Tensor map = dense(input), rows = dense(rois);
  Tensor output = uninitialized(input, {sizes.rois, output_dim, pooled_size, pooled_size});
  if (output.numel() == 0) return output;
  dispatch_floating(input.scalar_type(), "psroi_pool", [&]<typename T>() {
    using A = accumulate_t<T>;
    psroi_pool_kernel<T, A><<<blocks_for(output.numel()), kThreads, 0, current_stream(input)>>>(
        sizes, map.template const_data_ptr<T>(), rows.template const_data_ptr<A>(),
        static_cast<A>(spatial_scale), output.template mutable_data_ptr<T>());
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return output;
}

template <bool kDeterministic>
Tensor psroi_pool_backward(const Tensor& grad_output, const Tensor& rois, int64_t batch, int64_t height,
                           int64_t width, double spatial_scale, int64_t group_size) {
  const PsroiSizes sizes = psroi_sizes(grad_output, rois, batch, height, width, group_size);
  const DeviceGuard guard(grad_output.get_device_index());
  const Tensor grad = dense(grad_output), rows = dense(rois);
  const Tensor result = new_zeros(rois, {batch, sizes.input_channels(), height, width});
  if (grad.numel() == 0 || result.numel() == 0) return cast(result, grad.scalar_type());
  dispatch_floating(grad.scalar_type(), "psroi_pool_backward", [&]<typename T>() {
    using A = accumulate_t<T>;
    const double terms = static_cast<double>(sizes.rois) * sizes.bins();
    add_up<A>(result, kDeterministic, terms, {grad}, [&](const auto& sums) {
      psroi_pool_grad_input_kernel<T, A><<<blocks_for(grad.numel()), kThreads, 0, current_stream(grad)>>>(
          sizes, grad.template const_data_ptr<T>(), rows.template const_data_ptr<A>(),
          static_cast<A>(spatial_scale), sums);
    });
  });
  return cast(result, grad.scalar_type());
}

}  // namespace
}  // namespace dcn_det

STABLE_TORCH_LIBRARY_IMPL(dcn_det, CUDA, m) {
  m.impl("psroi_pool", TORCH_BOX(&dcn_det::psroi_pool));
  m.impl("psroi_pool_backward", TORCH_BOX(&dcn_det::psroi_pool_backward<false>));
  m.impl("psroi_pool_backward_deterministic", TORCH_BOX(&dcn_det::psroi_pool_backward<true>));
}
