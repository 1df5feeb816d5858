// Deformable convolution on the CPU.
#include "common/deform_conv_driver.h"
#include "cpu/deform_conv_backward.h"
#include "cpu/deform_conv_loops.h"
#include "cpu/serial_products.h"
#include "cpu/transpose.h"

namespace dcn_det {
namespace {

struct Cpu {
  // Small enough for a core's cache, so that columns stay there until they are multiplied.
  static constexpr int64_t kTileBytes = 9 << 18;
  static constexpr int64_t kTileMultiple = 4;  // divisible by common numbers of threads
  static constexpr auto dense_copy = dcn_det::dense_copy;
  static constexpr auto multiply = dcn_det::multiply;
  static constexpr auto multiply_add = dcn_det::multiply_add;

  struct Guard {};
  static Guard guard(const Tensor&) { return {}; }

  template <typename Body>
  static void for_each_tile(int64_t tiles, const Body& body) {
    parallel_with_products(tiles, body);
  }

  static void fill(const DeformConvShape& shape, const Tensor& features, const Tensor& offset,
                   const std::optional<Tensor>& mask, const Tensor& columns, int64_t first, int64_t rows) {
    dispatch_floating(features.scalar_type(), "deform_conv2d", [&]<typename T>() {
      using A = accumulate_t<T>;
      vectorized<FillColumns>(shape, features.const_data_ptr<T>(), planes_of<const A>(offset),
                              planes_of<const A>(mask), columns_of<T>(shape, columns), first, first,
                              first + rows);
    });
  }

  static void forward(const DeformConvShape& shape, const ForwardTensors& tensors, bool /*split*/) {
    const int64_t width = tensors.matrices.size(1), depth = tensors.matrices.size(2);
    const Tensor grid = reshaped(tensors.matrices, {shape.groups, width, depth, 1});
    const Tensor right = reshaped(to_channels_last<Cpu>(grid), {shape.groups, depth, width});
    const int64_t row_bytes = shape.groups * depth * tensors.features.element_size();
    forward_tiles<Cpu>(shape, tensors, right, tile_rows(shape, row_bytes, kTileBytes, kTileMultiple));
  }

  static void backward(const DeformConvShape& shape, const BackwardTensors& tensors, const Needs& needs,
                       bool /*split*/) {
    dispatch_floating(tensors.features.scalar_type(), "deform_conv2d_backward",
                      [&]<typename T>() { CpuBackward<T>(shape, tensors, needs).run(); });
  }
};

}  // namespace
}  // namespace dcn_det

STABLE_TORCH_LIBRARY_IMPL(dcn_det, CPU, m) {
  m.impl("deform_conv2d", TORCH_BOX(&dcn_det::deform_conv2d<dcn_det::Cpu>));
  m.impl("deform_conv2d_backward", TORCH_BOX(&dcn_det::deform_conv2d_backward<dcn_det::Cpu>));
  m.impl("deform_conv2d_backward_deterministic", TORCH_BOX(&dcn_det::deform_conv2d_backward<dcn_det::Cpu>));
}
