// Deformable position-sensitive RoI pooling on CUDA: launches the kernels of deform_psroi_pool.cuh and
// deform_psroi_pool_last.cuh.
#include <cuda_runtime.h>

#include <tuple>

#include "common/roi_arguments.h"
#include "cuda/deform_psroi_pool.cuh"
#include "cuda/deform_psroi_pool_last.cuh"
#include "cuda/launch.h"

namespace dcn_det {
namespace {

template <typename A>
DeformPsroiRegions<A> regions_of(const Tensor& rois, const std::optional<Tensor>& offset,
                                 double spatial_scale, double offset_std) {
  return {rois.const_data_ptr<A>(), offset ? offset->const_data_ptr<A>() : nullptr,
          static_cast<A>(spatial_scale), static_cast<A>(offset_std)};
}

// The number of lanes that share the work of an offset: as many as have work, at most a warp.
int offset_lanes(const DeformPsroiSizes& sizes) {
  const int64_t bins = (sizes.pooled + sizes.part - 1) / sizes.part;
  const int64_t items = sizes.channels_per_class() * bins * bins;
  int lanes = 1;
  while (lanes < kWarp && lanes < items) lanes *= 2;
  return lanes;
}

// Whether the kernels for channels-last memory apply, in which lanes share channels.
bool suits_channels_last(const DeformPsroiSizes& sizes) {
  return sizes.group == 1 && sizes.channels_per_class() >= 4 * kLeastLanes;
}

// Calls body.operator()<T, N>(lanes) for features in channels-last memory.
template <typename Body>
void dispatch_last(const DeformPsroiSizes& sizes, const Tensor& features, const char* name,
                   const Body& body) {
  dispatch_floating(features.scalar_type(), name, [&]<typename T>() {
    constexpr int most = kAccessBytes / sizeof(T);
    const int channels = static_cast<int>(std::min<int64_t>(sizes.channels_per_class(), 1 << 20));
    if (sizes.channels_per_class() % most == 0 && is_aligned(features)) {
      body.template operator()<T, most>(lanes_for(channels, most));
    } else {
      body.template operator()<T, 1>(lanes_for(channels, 1));
    }
  });
}

Tensor channels_last(const Tensor& input) { return dense_copy(permuted(input, {0, 2, 3, 1})); }

// Sums, (images, height, width, channels), as the gradient of `like`, in its dtype and layout.
Tensor from_channels_last(const Tensor& like, const Tensor& sums) {
  const Tensor view = permuted(cast(sums, like.scalar_type()), {0, 3, 1, 2});
  if (is_channels_last(like)) return view;
  return in_layout_of(like, dense_copy(view));
}

Tensor deform_psroi_pool(const Tensor& input, const Tensor& rois, std::optional<Tensor> offset,
                         double spatial_scale, int64_t output_dim, int64_t group_size, int64_t pooled_size,
                         int64_t part_size, int64_t samples_per_bin, double offset_std) {
  const auto sizes = deform_psroi_sizes(input, rois, offset, output_dim, group_size, pooled_size, part_size,
                                        samples_per_bin);
  const DeviceGuard guard(input.get_device_index());
  const Tensor rows = dense(rois);
  if (offset) offset = dense(*offset);
  Tensor output = uninitialized(input, {sizes.rois, output_dim, pooled_size, pooled_size});
  if (output.numel() == 0) return output;
  if (input.numel() == 0) return torch::stable::zero_(output);
  if (suits_channels_last(sizes)) {
    const Tensor map = channels_last(input);
    dispatch_last(sizes, map, "deform_psroi_pool", [&]<typename T, int N>(int lanes) {
      using A = accumulate_t<T>;
      deform_psroi_pool_last_kernel<T, A, N><<<blocks_for(sizes.rois * sizes.classes * sizes.bins() * lanes),
                                               kThreads, 0, current_stream(input)>>>(
          sizes, regions_of<A>(rows, offset, spatial_scale, offset_std), map.template const_data_ptr<T>(),
          output.template mutable_data_ptr<T>(), lanes);
    });
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    return output;
  }
  const Tensor map = dense(input);
  dispatch_floating(input.scalar_type(), "deform_psroi_pool", [&]<typename T>() {
    using A = accumulate_t<T>;
    deform_psroi_pool_kernel<T, A><<<blocks_for(output.numel()), kThreads, 0, current_stream(input)>>>(
        sizes, regions_of<A>(rows, offset, spatial_scale, offset_std), map.template const_data_ptr<T>(),
        output.template mutable_data_ptr<T>());
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return output;
}

template <bool kDeterministic>
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
  const DeviceGuard guard(input.get_device_index());
  const Tensor rows = dense(rois), grad = dense(grad_output);
  if (offset) offset = dense(*offset);
  const bool last = suits_channels_last(sizes), empty = grad.numel() == 0 || input.numel() == 0;
  const int64_t images = input.size(0), channels = input.size(1), height = input.size(2),
                width = input.size(3);
  Tensor sums = uninitialized(rois, {0}), grad_offset = uninitialized(rois, {0});
  if (need_input)
    sums = last ? new_zeros(rois, {images, height, width, channels})
                : new_zeros(rois, {images, channels, height, width});
  if (need_offset) {
    const std::initializer_list<int64_t> shape = {sizes.rois, offset->size(1), part_size, part_size};
    grad_offset = empty ? new_zeros(rois, shape) : uninitialized(rois, shape);  // kernels write every element
  }
  const cudaStream_t stream = current_stream(input);
  const double terms = static_cast<double>(sizes.rois) * sizes.bins();
  if (!empty && last && (need_input || need_offset)) {
    const Tensor map = channels_last(input);
    dispatch_last(sizes, map, "deform_psroi_pool_backward", [&]<typename T, int N>(int lanes) {
      using A = accumulate_t<T>;
      const auto launch = [&](const auto& target) {
        deform_psroi_pool_last_backward_kernel<T, A, N>
            <<<blocks_for(sizes.rois * sizes.classes * sizes.offset_plane() * lanes), kThreads, 0, stream>>>(
                sizes, regions_of<A>(rows, offset, spatial_scale, offset_std),
                map.template const_data_ptr<T>(), grad.template const_data_ptr<T>(), target,
                need_offset ? grad_offset.template mutable_data_ptr<A>() : nullptr, lanes);
      };
      if (need_input) {
        add_up<A>(sums, kDeterministic, terms, {grad}, launch);
      } else {
        launch(FloatingSums<A>{nullptr});
      }
    });
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  } else if (!empty) {
    const Tensor map = dense(input);
    dispatch_floating(input.scalar_type(), "deform_psroi_pool_backward", [&]<typename T>() {
      using A = accumulate_t<T>;
      const auto regions = regions_of<A>(rows, offset, spatial_scale, offset_std);
      const T* grads = grad.template const_data_ptr<T>();
      const T* cells = map.template const_data_ptr<T>();
      A* moves = need_offset ? grad_offset.template mutable_data_ptr<A>() : nullptr;
      const bool together = need_offset && owns_offsets(sizes);
      const auto launch = [&](const auto& target) {
        deform_psroi_pool_backward_kernel<T, A><<<blocks_for(grad.numel()), kThreads, 0, stream>>>(
            sizes, regions, cells, grads, target, together ? moves : nullptr);
      };
      if (need_input) {
        add_up<A>(sums, kDeterministic, terms, {grad}, launch);
      } else if (together) {
        launch(FloatingSums<A>{nullptr});
      }
      if (need_offset && !together) {
        const int lanes = offset_lanes(sizes);
        deform_psroi_pool_grad_offset_kernel<T, A>
            <<<blocks_for(grad_offset.numel() / 2 * lanes), kThreads, 0, stream>>>(sizes, regions, cells,
                                                                                   grads, moves, lanes);
      }
    });
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  if (!need_input) return {uninitialized(input, {0}), grad_offset};
  return {last && !empty ? from_channels_last(input, sums)
                         : in_layout_of(input, reshaped(sums, {images, channels, height, width})),
          grad_offset};
}

}  // namespace
}  // namespace dcn_det

STABLE_TORCH_LIBRARY_IMPL(dcn_det, CUDA, m) {
  m.impl("deform_psroi_pool", TORCH_BOX(&dcn_det::deform_psroi_pool));
  m.impl("deform_psroi_pool_backward", TORCH_BOX(&dcn_det::deform_psroi_pool_backward<false>));
  m.impl("deform_psroi_pool_backward_deterministic", TORCH_BOX(&dcn_det::deform_psroi_pool_backward<true>));
}
