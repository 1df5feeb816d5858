// RoI align on CUDA: launches the kernels of roi_align.cuh.
#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>

#include "common/roi_arguments.h"
#include "cuda/launch.h"
#include "cuda/roi_align.cuh"

namespace dcn_det {
namespace {

using torch::stable::accelerator::DeviceGuard;

Tensor roi_align(const Tensor& input, const Tensor& rois, double spatial_scale, int64_t pooled_size,
                 int64_t sampling_ratio, bool aligned) {
  const RoiAlignSizes sizes = roi_align_sizes(input, rois, pooled_size, sampling_ratio, aligned);
  const DeviceGuard guard(input.get_device_index());
  const Tensor map = dense(input), rows = dense(rois);
  Tensor output = uninitialized(input, {sizes.rois, sizes.output_dim, pooled_size, pooled_size});
  if (output.numel() == 0) return output;
  if (map.numel() == 0) return torch::stable::zero_(output);
  dispatch_floating(input.scalar_type(), "roi_align", [&]<typename T>() {
    using A = accumulate_t<T>;
    roi_align_kernel<T, A><<<blocks_for(output.numel()), kThreads, 0, current_stream(input)>>>(
        sizes, map.template const_data_ptr<T>(), rows.template const_data_ptr<A>(),
        static_cast<A>(spatial_scale), output.template mutable_data_ptr<T>());
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return output;
}

template <bool kDeterministic>
Tensor roi_align_backward(const Tensor& grad_output, const Tensor& rois, int64_t batch, int64_t height,
                          int64_t width, double spatial_scale, int64_t sampling_ratio, bool aligned) {
  const RoiAlignSizes sizes =
      roi_align_sizes(grad_output, rois, batch, height, width, sampling_ratio, aligned);
  const DeviceGuard guard(grad_output.get_device_index());
  const Tensor grad = dense(grad_output), rows = dense(rois);
  const Tensor result = new_zeros(rois, {batch, sizes.output_dim, height, width});
  if (grad.numel() == 0 || result.numel() == 0) return cast(result, grad.scalar_type());
  dispatch_floating(grad.scalar_type(), "roi_align_backward", [&]<typename T>() {
    using A = accumulate_t<T>;
    // Samples of a bin that read the same cell; if their number depends on the region, they are more than
    // half a cell apart.
    const double along_axis = sampling_ratio > 0 ? static_cast<double>(sampling_ratio) : 4;
    const double terms = static_cast<double>(sizes.rois) * sizes.bins() * along_axis * along_axis;
    add_up<A>(result, kDeterministic, terms, {grad}, [&](const auto& sums) {
      roi_align_grad_input_kernel<T, A><<<blocks_for(grad.numel()), kThreads, 0, current_stream(grad)>>>(
          sizes, grad.template const_data_ptr<T>(), rows.template const_data_ptr<A>(),
          static_cast<A>(spatial_scale), sums);
    });
  });
  return cast(result, grad.scalar_type());
}

}  // namespace
}  // namespace dcn_det

STABLE_TORCH_LIBRARY_IMPL(dcn_det, CUDA, m) {
  m.impl("roi_align", TORCH_BOX(&dcn_det::roi_align));
  m.impl("roi_align_backward", TORCH_BOX(&dcn_det::roi_align_backward<false>));
  m.impl("roi_align_backward_deterministic", TORCH_BOX(&dcn_det::roi_align_backward<true>));
}
