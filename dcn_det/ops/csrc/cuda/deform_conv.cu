// Deformable convolution on CUDA: launches of the kernels in deform_conv.cuh, and the products between them.
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cuda.h>
#include <torch/csrc/stable/accelerator.h>

#include "common/deform_conv_driver.h"
#include "cuda/deform_conv.cuh"
#include "cuda/launch.h"

namespace dcn_det {
namespace {

struct Cuda {
  // Bounds the memory for columns; the last tile of a batch may be smaller.
  static constexpr int64_t kForwardTileBytes = 128 << 20;
  static constexpr int64_t kBackwardTileBytes = 128 << 20;

  static torch::stable::accelerator::DeviceGuard guard(const Tensor& input) {
    return torch::stable::accelerator::DeviceGuard(input.get_device_index());
  }

  static Tensor dense_copy(const Tensor& self) { return torch::stable::contiguous(self); }

  template <typename Body>
  static void for_each_tile(int64_t tiles, const Body& body) {
    body(0, tiles);
  }

  static void multiply(const Tensor& out, const Tensor& a, const Tensor& b) {
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cuda_mm_out(out.get(), a.get(), b.get()));
  }

  static void multiply_add(const Tensor& out, const Tensor& self, const Tensor& a, const Tensor& b) {
    STABLE_TORCH_ERROR_CODE_CHECK(
        aoti_torch_cuda_addmm_out(out.get(), self.get(), a.get(), b.get(), 1.0, 1.0));
  }

  static void fill(const DeformConvShape& shape, const Tensor& features, const Tensor& offset,
                   const std::optional<Tensor>& mask, const Tensor& columns, int64_t first, int64_t rows) {
    const cudaStream_t stream = current_stream(features);
    const int64_t threads = rows * shape.offset_groups * shape.taps() * kLanes;
    dispatch_floating(features.scalar_type(), "deform_conv2d", [&]<typename T>() {
      using A = accumulate_t<T>;
      fill_columns_kernel<T, A><<<blocks_for(threads), kThreads, 0, stream>>>(
          shape, features.const_data_ptr<T>(), planes_of<const A>(offset), planes_of<const A>(mask),
          columns_of<T>(shape, columns), first, rows);
    });
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

  static void sweep(const DeformConvShape& shape, const BackwardTensors& tensors, const Needs& needs,
                    const Tensor& columns, int64_t first, int64_t rows) {
    const cudaStream_t stream = current_stream(columns);
    const int64_t threads = rows * shape.offset_groups * shape.taps() * kLanes;
    dispatch_floating(columns.scalar_type(), "deform_conv2d_backward", [&]<typename T>() {
      using A = accumulate_t<T>;
      A* grad_features = needs.input ? tensors.grad_features->template mutable_data_ptr<A>() : nullptr;
      sweep_kernel<T, A><<<blocks_for(threads), kThreads, 0, stream>>>(
          shape, tensors.features.const_data_ptr<T>(), planes_of<const A>(tensors.offset),
          planes_of<const A>(tensors.mask), columns_of<T>(shape, columns), grad_features,
          planes_of<A>(tensors.grad_offset), planes_of<A>(tensors.grad_mask), needs.weight, first, rows);
    });
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

  static void backward(const DeformConvShape& shape, BackwardTensors& tensors, const Needs& needs) {
    if (needs.weight) torch::stable::zero_(*tensors.grad_matrices);
    const int64_t rows = tile_rows(shape, tensors.features, kBackwardTileBytes);
    const Tensor columns = empty_columns(shape, tensors.features, rows);
    for (int64_t first = 0; first < shape.positions(); first += rows) {
      const int64_t count = std::min(rows, shape.positions() - first);
      if (needs.samples()) {
        for (int group = 0; group < shape.groups; ++group) {
          multiply(group_columns(columns, group, count),
                   tile_of(tensors.grad_rows, shape, first, count, group),
                   torch::stable::select(tensors.matrices, 0, group));
        }
        sweep(shape, tensors, needs, columns, first, count);
      } else {
        fill(shape, tensors.features, tensors.offset, tensors.mask, columns, first, count);
      }
      if (needs.weight) add_weight_gradient(shape, tensors, columns, first, count);
    }
  }

  // grad_matrices += grad_rows^T columns, in at least float32.
  static void add_weight_gradient(const DeformConvShape& shape, BackwardTensors& tensors,
                                  const Tensor& columns, int64_t first, int64_t rows) {
    Tensor& sum = *tensors.grad_matrices;
    const bool exact = sum.scalar_type() == columns.scalar_type();
    Tensor product;
    if (!exact) product = torch::stable::new_empty(tensors.matrices, tensors.matrices.sizes());
    for (int group = 0; group < shape.groups; ++group) {
      const Tensor grad =
          torch::stable::transpose(tile_of(tensors.grad_rows, shape, first, rows, group), 0, 1);
      const Tensor tile = group_columns(columns, group, rows);
      if (exact) {
        const Tensor out = torch::stable::select(sum, 0, group);
        multiply_add(out, out, grad, tile);
      } else {
        multiply(torch::stable::select(product, 0, group), grad, tile);
      }
    }
    if (!exact) sum = torch::stable::subtract(sum, product, -1.0);
  }
};

}  // namespace
}  // namespace dcn_det

STABLE_TORCH_LIBRARY_IMPL(dcn_det, CUDA, m) {
  m.impl("deform_conv2d", TORCH_BOX(&dcn_det::deform_conv2d<dcn_det::Cuda>));
  m.impl("deform_conv2d_backward", TORCH_BOX(&dcn_det::deform_conv2d_backward<dcn_det::Cuda>));
}
