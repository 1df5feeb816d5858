// Deformable convolution on CUDA: launches the kernels of deform_conv.cuh and the products between them.
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cuda.h>

#include "common/deform_conv_driver.h"
#include "cuda/deform_conv.cuh"
#include "cuda/launch.h"

namespace dcn_det {
namespace {

// Calls body.operator()<T, N>(lanes).
template <typename Body>
void dispatch_width(const DeformConvShape& shape, const Tensor& features, const Tensor& columns,
                    const char* name, const Body& body) {
  dispatch_floating(features.scalar_type(), name, [&]<typename T>() {
    constexpr int most = kAccessBytes / sizeof(T);
    const bool whole = shape.offset_group_channels() % most == 0 && shape.group_channels() % most == 0;
    const int width = whole && is_aligned(features) && is_aligned(columns) ? most : 1;
    const int lanes = lanes_for(shape.offset_group_channels(), width);
    if (width == most) {
      body.template operator()<T, most>(lanes);
    } else {
      body.template operator()<T, 1>(lanes);
    }
  });
}

struct Cuda {
  // A tile of columns fits the L2 cache of a large GPU together with the features that it samples, and has
  // enough rows for the tensor cores.
  static constexpr int64_t kForwardTileBytes = 32 << 20;
  static constexpr int64_t kBackwardTileBytes = 32 << 20;

  static DeviceGuard guard(const Tensor& input) { return DeviceGuard(input.get_device_index()); }

  static Tensor dense_copy(const Tensor& self) { return dcn_det::dense_copy(self); }

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
    const unsigned blocks = blocks_for(batch_count(shape, rows) * kWarp);
    dispatch_width(shape, features, columns, "deform_conv2d", [&]<typename T, int N>(int lanes) {
      using A = accumulate_t<T>;
      fill_columns_kernel<T, A, N><<<blocks, kThreads, 0, current_stream(features)>>>(
          shape, features.const_data_ptr<T>(), planes_of<const A>(offset), planes_of<const A>(mask),
          columns_of<T>(shape, columns), first, rows, lanes);
    });
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

  template <typename Sums>
  static void sweep(const DeformConvShape& shape, const BackwardTensors& tensors, const Needs& needs,
                    const Tensor& columns, const Sums& sums, int64_t first, int64_t rows) {
    const unsigned blocks = blocks_for(batch_count(shape, rows) * kWarp);
    dispatch_width(
        shape, tensors.features, columns, "deform_conv2d_backward", [&]<typename T, int N>(int lanes) {
          using A = accumulate_t<T>;
          if constexpr (std::is_same_v<Sums, FloatingSums<A>> || std::is_same_v<Sums, FixedPointSums<A>>) {
            sweep_kernel<T, A, N><<<blocks, kThreads, 0, current_stream(columns)>>>(
                shape, tensors.features.const_data_ptr<T>(), planes_of<const A>(tensors.offset),
                planes_of<const A>(tensors.mask), columns_of<T>(shape, columns), sums,
                planes_of<A>(tensors.grad_offset), planes_of<A>(tensors.grad_mask), needs.weight, first, rows,
                lanes);
          }
        });
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

  static void backward(const DeformConvShape& shape, BackwardTensors& tensors, const Needs& needs) {
    backward(shape, tensors, needs, false);
  }

  static void backward(const DeformConvShape& shape, BackwardTensors& tensors, const Needs& needs,
                       bool deterministic) {
    const auto run = [&](const auto& sums) { sweep_tiles(shape, tensors, needs, sums); };
    if (accumulate_dtype(tensors.features.scalar_type()) == ScalarType::Double) {
      add_up_features<double>(shape, tensors, needs, deterministic, run);
    } else {
      add_up_features<float>(shape, tensors, needs, deterministic, run);
    }
  }

  template <typename A, typename Run>
  static void add_up_features(const DeformConvShape& shape, const BackwardTensors& tensors,
                              const Needs& needs, bool deterministic, const Run& run) {
    if (!needs.input) return run(FloatingSums<A>{nullptr});
    // The gradient of a column is a sum over output channels, added to a cell with a weight of at most 1.
    const double terms =
        static_cast<double>(shape.out_cells()) * shape.taps() * (shape.out_channels / shape.groups);
    if (tensors.mask.has_value()) {
      add_up<A>(*tensors.grad_features, deterministic, terms,
                {tensors.grad_rows, tensors.matrices, torch::stable::contiguous(*tensors.mask)}, run);
    } else {
      add_up<A>(*tensors.grad_features, deterministic, terms, {tensors.grad_rows, tensors.matrices}, run);
    }
  }

  template <typename Sums>
  static void sweep_tiles(const DeformConvShape& shape, BackwardTensors& tensors, const Needs& needs,
                          const Sums& sums) {
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
        sweep(shape, tensors, needs, columns, sums, first, count);
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

struct DeterministicCuda : Cuda {
  static void backward(const DeformConvShape& shape, BackwardTensors& tensors, const Needs& needs) {
    Cuda::backward(shape, tensors, needs, true);
  }
};

}  // namespace
}  // namespace dcn_det

STABLE_TORCH_LIBRARY_IMPL(dcn_det, CUDA, m) {
  using namespace dcn_det;
  m.impl("deform_conv2d", TORCH_BOX(&deform_conv2d<Cuda>));
  m.impl("deform_conv2d_backward", TORCH_BOX(&deform_conv2d_backward<Cuda>));
  m.impl("deform_conv2d_backward_deterministic", TORCH_BOX(&deform_conv2d_backward<DeterministicCuda>));
}
