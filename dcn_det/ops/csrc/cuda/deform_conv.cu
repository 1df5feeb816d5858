// Deformable convolution on CUDA: launches the kernels of deform_conv.cuh and the products between them.
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cuda.h>

#include "common/deform_conv_driver.h"
#include "cuda/deform_conv.cuh"
#include "cuda/launch.h"

namespace dcn_det {
namespace {

using Part = torch::headeronly::BFloat16;

// Calls body.operator()<N>(lanes), with the widest accesses that the sizes allow, or single elements.
template <typename T, typename Body>
void with_width(const DeformConvShape& shape, bool aligned, const Body& body) {
  constexpr int most = kAccessBytes / sizeof(T);
  const int channels = shape.offset_group_channels();
  if (aligned && channels % most == 0 && shape.group_channels() % most == 0) {
    body.template operator()<most>(lanes_for(channels, most));
  } else {
    body.template operator()<1>(lanes_for(channels, 1));
  }
}

// Whether sums are of this type.
template <typename Sums, typename A>
constexpr bool kAdds = std::is_same_v<Sums, FloatingSums<A>> || std::is_same_v<Sums, FixedPointSums<A>>;

// Copies of the parts of a matrix of this many rows: (rows, copies, columns).
template <typename Kind>
Tensor parts_of(const Tensor& matrix, int64_t rows) {
  const int64_t columns = matrix.numel() / rows;
  const Tensor copies = uninitialized(matrix, {rows, Kind::count, columns}, ScalarType::BFloat16);
  split_kernel<Part, Kind><<<blocks_for(matrix.numel()), kThreads, 0, current_stream(matrix)>>>(
      matrix.const_data_ptr<float>(), copies.mutable_data_ptr<Part>(), rows, columns);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return copies;
}

// out = the sum of the first `count` products (rows, columns), plus a bias, plus `out` if `more`.
void add_products(const Tensor& products, int64_t count, const std::optional<Tensor>& bias, bool more,
                  const Tensor& out) {
  const int64_t rows = out.size(0), columns = out.size(1);
  std::optional<Tensor> terms;
  if (bias.has_value()) terms = dense(*bias);
  add_products_kernel<<<blocks_for(rows * columns), kThreads, 0, current_stream(out)>>>(
      products.const_data_ptr<float>(), static_cast<int>(count), rows, columns,
      terms.has_value() ? terms->const_data_ptr<float>() : nullptr, more, out.mutable_data_ptr<float>(),
      out.stride(0));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

struct Cuda {
  static DeviceGuard guard(const Tensor& input) { return DeviceGuard(input.get_device_index()); }

  static Tensor dense_copy(const Tensor& self) { return dcn_det::dense_copy(self); }

  template <typename Body>
  static void for_each_tile(int64_t tiles, const Body& body) {
    body(0, tiles);
  }

  // out = a b, where `out` may be float32 for half-precision matrices.
  static void multiply(const Tensor& out, const Tensor& a, const Tensor& b) {
    if (out.scalar_type() == a.scalar_type()) {
      STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cuda_mm_out(out.get(), a.get(), b.get()));
    } else {
      call_operator("aten::mm", "dtype_out", a, b, out.scalar_type(), out);
    }
  }

  static void multiply_add(const Tensor& out, const Tensor& self, const Tensor& a, const Tensor& b) {
    STABLE_TORCH_ERROR_CODE_CHECK(
        aoti_torch_cuda_addmm_out(out.get(), self.get(), a.get(), b.get(), 1.0, 1.0));
  }

  // The products of the columns of `a` with the rows of `b`, kChunk at a time, each (rows, columns): stores
  // them from products[0] on and returns their number.
  static int64_t multiply_chunks(const Tensor& products, const Tensor& a, const Tensor& b) {
    const int64_t rows = a.size(0), columns = b.size(1), depth = a.size(1);
    const int64_t whole = depth / kChunk, rest = depth % kChunk;
    if (whole > 0) {
      const Tensor left =
          restrided(a, {whole, rows, kChunk}, {kChunk * a.stride(1), a.stride(0), a.stride(1)});
      const Tensor right =
          restrided(b, {whole, kChunk, columns}, {kChunk * b.stride(0), b.stride(0), b.stride(1)});
      call_operator("aten::bmm", "dtype_out", left, right, products.scalar_type(),
                    narrowed(products, 0, 0, whole));
    }
    if (rest > 0) {
      multiply(selected(products, whole), narrowed(a, 1, whole * kChunk, rest),
               narrowed(b, 0, whole * kChunk, rest));
    }
    return whole + (rest > 0);
  }

  static int64_t chunks_of(int64_t depth) { return (depth + kChunk - 1) / kChunk; }

  template <typename T, typename Target>
  static void launch_fill(const DeformConvShape& shape, const Tensor& features, const Tensor& offset,
                          const std::optional<Tensor>& mask, const Target& target, bool aligned,
                          int64_t first, int64_t rows) {
    using A = accumulate_t<T>;
    const unsigned blocks = blocks_for(batch_count(shape, rows) * kWarp);
    with_width<T>(shape, aligned && is_aligned(features), [&]<int N>(int lanes) {
      fill_columns_kernel<T, A, N><<<blocks, kThreads, 0, current_stream(features)>>>(
          shape, features.const_data_ptr<T>(), planes_of<const A>(offset), planes_of<const A>(mask), target,
          first, rows, lanes);
    });
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

  static void fill(const DeformConvShape& shape, const Tensor& features, const Tensor& offset,
                   const std::optional<Tensor>& mask, const Tensor& columns, int64_t first, int64_t rows) {
    dispatch_floating(features.scalar_type(), "deform_conv2d", [&]<typename T>() {
      launch_fill<T>(shape, features, offset, mask, WholeColumns<T>{columns_of<T>(shape, columns)},
                     is_aligned(columns), first, rows);
    });
  }

  static void forward(const DeformConvShape& shape, const ForwardTensors& tensors, bool split) {
    const ScalarType dtype = tensors.features.scalar_type();
    if (split && dtype == ScalarType::Float) return split_forward(shape, tensors);
    forward_tiles<Cuda>(shape, tensors, transposed(tensors.matrices),
                        tile_rows_of(shape, tensors.features.element_size()));
  }

  // Columns are (groups, rows, kParts, taps * channels / groups): neighboring parts are one matrix.
  static void split_forward(const DeformConvShape& shape, const ForwardTensors& tensors) {
    const int64_t width = tensors.matrices.size(1), depth = tensors.matrices.size(2);
    const int64_t most = tile_rows_of(shape, kParts * sizeof(Part));
    const Tensor right = transposed(reshaped(parts_of<ChunkedRight>(tensors.matrices, shape.groups * width),
                                             {shape.groups, width, ChunkedRight::count * depth}));
    const Tensor columns = uninitialized(right, {shape.groups, most, kParts * depth}, ScalarType::BFloat16);
    const Tensor memory = uninitialized(tensors.features, {(chunks_of(depth) + 3) * most * width});
    for (int64_t first = 0; first < shape.positions(); first += most) {
      const int64_t count = std::min(most, shape.positions() - first);
      launch_fill<float>(shape, tensors.features, tensors.offset, tensors.mask,
                         SplitColumns<Part>{columns_of<Part>(shape, columns), depth}, is_aligned(columns),
                         first, count);
      const Tensor products = reshaped(narrowed(memory, 0, 0, memory.numel() / most * count),
                                       {chunks_of(depth) + 3, count, width});
      for (int group = 0; group < shape.groups; ++group) {
        const Tensor samples = group_columns(columns, group, count);
        const Tensor matrix = selected(right, group);
        // out[product] = columns * matrix, of so many parts from these on
        const auto multiply_parts = [&](int64_t product, int column_part, int matrix_part, int parts) {
          multiply(selected(products, product), narrowed(samples, 1, column_part * depth, parts * depth),
                   narrowed(matrix, 0, matrix_part * depth, parts * depth));
        };
        const int64_t chunks =
            multiply_chunks(products, narrowed(samples, 1, 2 * depth, depth), narrowed(matrix, 0, 0, depth));
        multiply_parts(chunks, 0, 0, 2);
        multiply_parts(chunks + 1, 1, 2, 2);
        multiply_parts(chunks + 2, 2, 4, 1);
        add_products(products, chunks + 3, tensors.bias_of(shape, group), false,
                     tile_of(tensors.output, shape, first, count, group));
      }
    }
  }

  template <typename T, typename Sums, typename Target>
  static void launch_sweep(const DeformConvShape& shape, const BackwardTensors& tensors,
                           const Tensor& grad_columns, const Sums& sums, const Target& target, bool aligned,
                           int64_t first, int64_t rows) {
    using A = accumulate_t<T>;
    const unsigned blocks = blocks_for(batch_count(shape, rows) * kWarp);
    const Tensor& features = tensors.features;
    with_width<T>(shape, aligned && is_aligned(features) && is_aligned(grad_columns), [&]<int N>(int lanes) {
      sweep_kernel<T, A, N><<<blocks, kThreads, 0, current_stream(features)>>>(
          shape, features.const_data_ptr<T>(), planes_of<const A>(tensors.offset),
          planes_of<const A>(tensors.mask), columns_of<T>(shape, grad_columns), sums,
          planes_of<A>(tensors.grad_offset), planes_of<A>(tensors.grad_mask), target, first, rows, lanes);
    });
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

  static void backward(const DeformConvShape& shape, BackwardTensors& tensors, const Needs& needs,
                       bool split) {
    backward(shape, tensors, needs, split, false);
  }

  static void backward(const DeformConvShape& shape, BackwardTensors& tensors, const Needs& needs, bool split,
                       bool deterministic) {
    const ScalarType dtype = tensors.features.scalar_type();
    const auto run = [&]<typename Sums>(const Sums& sums) {
      if constexpr (kAdds<Sums, float>) {
        if (split && dtype == ScalarType::Float) return split_sweep_tiles(shape, tensors, needs, sums);
      }
      sweep_tiles(shape, tensors, needs, sums);
    };
    if (dtype == ScalarType::Double) {
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
                {tensors.grad_rows, tensors.matrices, dense(*tensors.mask)}, run);
    } else {
      add_up<A>(*tensors.grad_features, deterministic, terms, {tensors.grad_rows, tensors.matrices}, run);
    }
  }

  template <typename Sums>
  static void sweep_tiles(const DeformConvShape& shape, BackwardTensors& tensors, const Needs& needs,
                          const Sums& sums) {
    const int64_t most = tile_rows_of(shape, tensors.features.element_size());
    const Tensor columns = empty_columns(shape, tensors.features, most);
    for (int64_t first = 0; first < shape.positions(); first += most) {
      const int64_t count = std::min(most, shape.positions() - first);
      if (needs.samples()) {
        for (int group = 0; group < shape.groups; ++group) {
          multiply(group_columns(columns, group, count),
                   tile_of(tensors.grad_rows, shape, first, count, group), selected(tensors.matrices, group));
        }
        dispatch_floating(columns.scalar_type(), "deform_conv2d_backward", [&]<typename T>() {
          if constexpr (kAdds<Sums, accumulate_t<T>>) {
            const WholeColumns<T> kept{needs.weight ? columns_of<T>(shape, columns) : Columns<T>{}};
            launch_sweep<T>(shape, tensors, columns, sums, kept, true, first, count);
          }
        });
      } else {
        fill(shape, tensors.features, tensors.offset, tensors.mask, columns, first, count);
      }
      if (needs.weight) add_weight_gradient(shape, tensors, columns, first, count);
    }
  }

  // grad_matrices += grad_rows^T columns, in at least float32.
  static void add_weight_gradient(const DeformConvShape& shape, const BackwardTensors& tensors,
                                  const Tensor& columns, int64_t first, int64_t rows) {
    for (int group = 0; group < shape.groups; ++group) {
      const Tensor sum = selected(*tensors.grad_matrices, group);
      const Tensor grad = transposed(tile_of(tensors.grad_rows, shape, first, rows, group));
      const Tensor tile = group_columns(columns, group, rows);
      if (first == 0) {
        multiply(sum, grad, tile);
      } else if (sum.scalar_type() == tile.scalar_type()) {
        multiply_add(sum, sum, grad, tile);
      } else {
        const Tensor product = uninitialized(sum, sum.sizes());
        multiply(product, grad, tile);
        add_products(product, 1, std::nullopt, true, sum);
      }
    }
  }

  // Columns are (groups, kParts, rows, taps * channels / groups), beside their gradients in float32.
  template <typename Sums>
  static void split_sweep_tiles(const DeformConvShape& shape, const BackwardTensors& tensors,
                                const Needs& needs, const Sums& sums) {
    const int64_t width = tensors.matrices.size(1), depth = tensors.matrices.size(2);
    const int64_t kept_bytes = needs.weight ? kParts * sizeof(Part) : 0;
    const int64_t most = tile_rows_of(shape, kept_bytes + (needs.samples() ? sizeof(float) : 0));
    const Tensor left = reshaped(parts_of<SixLeft>(tensors.grad_rows, shape.positions() * shape.groups),
                                 {shape.positions(), shape.groups, SixLeft::count * width});
    const Tensor right = reshaped(parts_of<SixRight>(tensors.matrices, shape.groups),
                                  {shape.groups, SixRight::count * width, depth});
    const Tensor grad_columns = empty_columns(shape, tensors.features, needs.samples() ? most : 0);
    const int64_t kept_rows = needs.weight ? most : 0;
    const Tensor columns =
        uninitialized(right, {shape.groups, kParts * kept_rows, depth}, ScalarType::BFloat16);
    const Tensor products =
        uninitialized(tensors.matrices, {needs.weight ? chunks_of(most) + 5 : 0, width, depth});
    SplitColumns<Part> kept{columns_of<Part>(shape, columns), kept_rows * depth};
    if (!needs.weight) kept.columns.data = nullptr;
    for (int64_t first = 0; first < shape.positions(); first += most) {
      const int64_t count = std::min(most, shape.positions() - first);
      const auto grad_rows_of = [&](int group) {
        return restrided(left, {count, SixLeft::count * width}, {left.stride(0), 1},
                         first * left.stride(0) + group * left.stride(1));
      };
      if (needs.samples()) {
        for (int group = 0; group < shape.groups; ++group) {
          multiply(group_columns(grad_columns, group, count), grad_rows_of(group), selected(right, group));
        }
        launch_sweep<float>(shape, tensors, grad_columns, sums, kept, is_aligned(columns), first, count);
      } else {
        launch_fill<float>(shape, tensors.features, tensors.offset, tensors.mask, kept, is_aligned(columns),
                           first, count);
      }
      for (int group = 0; group < shape.groups && needs.weight; ++group) {
        const Tensor grads = transposed(grad_rows_of(group));
        const auto part_of = [&](int part) {  // of the columns
          return narrowed(selected(columns, group), 0, part * kept_rows, count);
        };
        const int64_t chunks = multiply_chunks(products, narrowed(grads, 0, 5 * width, width), part_of(2));
        // products[product] and the next = gradients * columns, of so many parts of the gradients from this
        // on
        const auto multiply_parts = [&](int64_t product, int grad_part, int parts, int column_part) {
          multiply(reshaped(narrowed(products, 0, product, parts), {parts * width, depth}),
                   narrowed(grads, 0, grad_part * width, parts * width), part_of(column_part));
        };
        multiply_parts(chunks, 1, 2, 1);
        multiply_parts(chunks + 2, 0, 2, 2);
        multiply_parts(chunks + 4, 2, 1, 0);
        add_products(products, chunks + 5, std::nullopt, first > 0, selected(*tensors.grad_matrices, group));
      }
    }
  }
};

struct DeterministicCuda : Cuda {
  static void backward(const DeformConvShape& shape, BackwardTensors& tensors, const Needs& needs,
                       bool split) {
    Cuda::backward(shape, tensors, needs, split, true);
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
