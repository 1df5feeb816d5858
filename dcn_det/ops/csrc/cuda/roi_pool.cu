// RoI max pooling on CUDA: launches the kernels of roi_pool.cuh.
#include <cuda_runtime.h>

#include <tuple>

#include "common/roi_arguments.h"
#include "cuda/launch.h"
#include "cuda/roi_pool.cuh"

namespace dcn_det {
namespace {

std::tuple<Tensor, Tensor> roi_pool(const Tensor& input, const Tensor& rois, double spatial_scale,
                                    int64_t pooled_size) {
  const RoiPoolSizes sizes = roi_pool_sizes(input, rois, pooled_size);
  const DeviceGuard guard(input.get_device_index());
  const Tensor map = dense(input), rows = dense(rois);
  Tensor output = uninitialized(input, {sizes.rois, sizes.channels, pooled_size, pooled_size});
  Tensor argmax =
      uninitialized(input, {sizes.rois, sizes.channels, pooled_size, pooled_size}, ScalarType::Int);
  if (output.numel() == 0) return {output, argmax};
  dispatch_floating(input.scalar_type(), "roi_pool", [&]<typename T>() {
    using A = accumulate_t<T>;
    roi_pool_kernel<T, A><<<blocks_for(output.numel()), kThreads, 0, current_stream(input)>>>(
        sizes, map.template const_data_ptr<T>(), rows.template const_data_ptr<A>(),
        static_cast<A>(spatial_scale), output.template mutable_data_ptr<T>(),
        argmax.mutable_data_ptr<int32_t>());
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {output, argmax};
}

template <bool kDeterministic>
Tensor roi_pool_backward(const Tensor& grad_output, const Tensor& rois, const Tensor& argmax, int64_t batch,
                         int64_t height, int64_t width) {
  const RoiPoolSizes sizes = roi_pool_sizes(grad_output, rois, argmax, batch, height, width);
  const DeviceGuard guard(grad_output.get_device_index());
  const Tensor grad = dense(grad_output), rows = dense(rois);
  const Tensor cells = dense(argmax);
  const Tensor result = new_zeros(rois, {batch, sizes.channels, height, width});
  if (grad.numel() == 0 || result.numel() == 0) return cast(result, grad.scalar_type());
  dispatch_floating(grad.scalar_type(), "roi_pool_backward", [&]<typename T>() {
    using A = accumulate_t<T>;
    const double terms = static_cast<double>(sizes.rois) * sizes.bins();
    add_up<A>(result, kDeterministic, terms, {grad}, [&](const auto& sums) {
      roi_pool_grad_input_kernel<T, A><<<blocks_for(grad.numel()), kThreads, 0, current_stream(grad)>>>(
          sizes, grad.template const_data_ptr<T>(), rows.template const_data_ptr<A>(),
          cells.const_data_ptr<int32_t>(), sums);
    });
  });
  return cast(result, grad.scalar_type());
}

}  // namespace
}  // namespace dcn_det

STABLE_TORCH_LIBRARY_IMPL(dcn_det, CUDA, m) {
  m.impl("roi_pool", TORCH_BOX(&dcn_det::roi_pool));
  m.impl("roi_pool_backward", TORCH_BOX(&dcn_det::roi_pool_backward<false>));
  m.impl("roi_pool_backward_deterministic", TORCH_BOX(&dcn_det::roi_pool_backward<true>));
}
