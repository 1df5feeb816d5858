// The deformable convolution as tiles of columns and matrix products, for every device.
//
// A Device supplies, as static members:
// - guard(input): makes the input's device current for the lifetime of the result.
// - dense_copy(tensor): returns a contiguous copy, or the tensor itself if it is contiguous.
// - forward(shape, tensors, split): computes the output.
// - backward(shape, tensors, needs, split): computes the gradients that are needed.
//
// `split` allows products of float32 matrices that are split into bfloat16 parts; devices without them
// ignore it. forward_tiles() is the forward pass with one product per tile. It also needs:
// - for_each_tile(tiles, body): calls body(begin, end) for ranges that cover [0, tiles), possibly in
// parallel.
// - multiply(out, a, b): computes out = a b.
// - multiply_add(out, self, a, b): computes out = self + a b, where self is broadcast and may be out.
// - fill(shape, features, offset, mask, columns, first, rows): computes the columns from position `first` on.
#pragma once

#include <algorithm>
#include <string>
#include <tuple>
#include <vector>

#include "common/deform_conv_inputs.h"

namespace dcn_det {

inline Tensor empty_columns(const DeformConvShape& shape, const Tensor& input, int64_t rows) {
  return uninitialized(input,
                       {shape.groups, rows, static_cast<int64_t>(shape.taps()) * shape.group_channels()});
}

template <typename T>
Columns<T> columns_of(const DeformConvShape& shape, const Tensor& columns) {
  return {columns.mutable_data_ptr<T>(), columns.stride(0), columns.stride(1), shape.groups,
          shape.group_channels()};
}

// The rows of a tile and the columns of a group in a (positions, out_channels) matrix.
inline Tensor tile_of(const Tensor& matrix, const DeformConvShape& shape, int64_t first, int64_t rows,
                      int group) {
  const int64_t width = shape.out_channels / shape.groups;
  return narrowed(narrowed(matrix, 0, first, rows), 1, group * width, width);
}

inline Tensor group_columns(const Tensor& columns, int group, int64_t rows) {
  return narrowed(selected(columns, group), 0, 0, rows);
}

// Tensors that a forward pass reads, and its output.
struct ForwardTensors {
  Tensor features;                   // (batch, height, width, channels)
  Tensor matrices;                   // (groups, out_channels / groups, taps * channels / groups)
  Tensor offset;                     // planes of the dtype of sums
  std::optional<Tensor> mask, bias;  // the mask likewise
  Tensor output;                     // (positions, out_channels)

  // The bias of a group's output channels.
  std::optional<Tensor> bias_of(const DeformConvShape& shape, int group) const {
    const int64_t width = shape.out_channels / shape.groups;
    if (!bias.has_value()) return std::nullopt;
    return narrowed(*bias, 0, group * width, width);
  }
};

// `right` holds the transposed matrices: (groups, taps * channels / groups, out_channels / groups).
template <typename Device>
void forward_tiles(const DeformConvShape& shape, const ForwardTensors& tensors, const Tensor& right,
                   int64_t rows) {
  Device::for_each_tile(tile_count(shape, rows), [&](int64_t begin, int64_t end) {
    const Tensor columns = empty_columns(shape, tensors.features, rows);
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t first = tile * rows, count = std::min(rows, shape.positions() - first);
      Device::fill(shape, tensors.features, tensors.offset, tensors.mask, columns, first, count);
      for (int group = 0; group < shape.groups; ++group) {
        const Tensor out = tile_of(tensors.output, shape, first, count, group);
        const Tensor samples = group_columns(columns, group, count);
        const Tensor matrix = selected(right, group);
        if (tensors.bias.has_value()) {
          Device::multiply_add(out, *tensors.bias_of(shape, group), samples, matrix);
        } else {
          Device::multiply(out, samples, matrix);
        }
      }
    }
  });
}

template <typename Device>
Tensor deform_conv2d(const Tensor& input, const Tensor& offset, const Tensor& weight,
                     const std::optional<Tensor>& bias, const std::optional<Tensor>& mask,
                     std::vector<int64_t> stride, std::vector<int64_t> padding, std::vector<int64_t> dilation,
                     std::string border, bool split) {
  [[maybe_unused]] const auto guard = Device::guard(input);
  const DeformConvShape shape = describe(input, offset, weight, mask, {stride, padding, dilation, border});
  STD_TORCH_CHECK(
      !bias.has_value() || (bias->dim() == 1 && bias->size(0) == shape.out_channels &&
                            bias->scalar_type() == input.scalar_type() && on_same_device(*bias, input)),
      "deform_conv2d: bias does not have the output's channels, dtype and device");
  const ScalarType sums = accumulate_dtype(input.scalar_type());
  ForwardTensors tensors{to_channels_last<Device>(input),
                         weight_matrices<Device>(weight, shape),
                         dense_planes(offset, sums),
                         {},
                         {},
                         uninitialized(input, {shape.positions(), shape.out_channels})};
  if (mask.has_value()) tensors.mask = dense_planes(*mask, sums);
  if (bias.has_value()) tensors.bias = detached(*bias);
  if (shape.positions() > 0) Device::forward(shape, tensors, split);
  const Tensor grid =
      reshaped(tensors.output, {shape.batch, shape.out_height, shape.out_width, shape.out_channels});
  return from_channels_last<Device>(grid, is_channels_last(input));
}

// The gradients that are needed.
struct Needs {
  bool input, offset, weight, mask;
  bool samples() const { return input || offset || mask; }
};

// Tensors that a backward pass reads and, where needed, writes.
struct BackwardTensors {
  Tensor grad_rows;            // (positions, out_channels)
  Tensor features;             // (batch, height, width, channels)
  Tensor matrices;             // (groups, out_channels / groups, taps * channels / groups)
  Tensor offset;               // planes of the dtype of sums
  std::optional<Tensor> mask;  // likewise
  // In the dtype of sums. grad_features starts as zeros, the others are uninitialized.
  std::optional<Tensor> grad_features, grad_offset, grad_mask, grad_matrices;
};

template <typename Device>
std::tuple<Tensor, Tensor, Tensor, Tensor> deform_conv2d_backward(
    const Tensor& grad_output, const Tensor& input, const Tensor& offset, const Tensor& weight,
    const std::optional<Tensor>& mask, std::vector<int64_t> stride, std::vector<int64_t> padding,
    std::vector<int64_t> dilation, std::string border, bool need_input, bool need_offset, bool need_weight,
    bool need_mask, bool split) {
  [[maybe_unused]] const auto guard = Device::guard(input);
  const DeformConvShape shape = describe(input, offset, weight, mask, {stride, padding, dilation, border});
  STD_TORCH_CHECK(grad_output.dim() == 4 && grad_output.scalar_type() == input.scalar_type() &&
                      grad_output.size(0) == shape.batch && grad_output.size(1) == shape.out_channels &&
                      grad_output.size(2) == shape.out_height && grad_output.size(3) == shape.out_width &&
                      on_same_device(grad_output, input),
                  "deform_conv2d_backward: grad_output does not have the output's shape, dtype and device");
  const Needs needs{need_input, need_offset, need_weight, need_mask && mask.has_value()};
  const ScalarType dtype = input.scalar_type(), sums = accumulate_dtype(dtype);
  BackwardTensors tensors{
      reshaped(to_channels_last<Device>(detached(grad_output)), {shape.positions(), shape.out_channels}),
      to_channels_last<Device>(input),
      weight_matrices<Device>(weight, shape),
      dense_planes(offset, sums),
      {},
      {},
      {},
      {},
      {}};
  if (mask.has_value()) tensors.mask = dense_planes(*mask, sums);
  if (needs.input) {
    tensors.grad_features = torch::stable::new_zeros(tensors.features, tensors.features.sizes(), sums);
  }
  if (needs.offset) tensors.grad_offset = empty_planes(offset, sums);
  if (needs.mask) tensors.grad_mask = empty_planes(*mask, sums);
  if (needs.weight) {
    tensors.grad_matrices = uninitialized(tensors.matrices, tensors.matrices.sizes(), sums);
  }

  if (shape.positions() > 0 && (needs.samples() || needs.weight)) {
    Device::backward(shape, tensors, needs, split);
  } else if (needs.weight) {
    torch::stable::zero_(*tensors.grad_matrices);
  }

  const auto absent = [&] { return uninitialized(input, {0}); };
  Tensor grad_input = absent(), grad_offset = absent(), grad_weight = absent(), grad_mask = absent();
  if (needs.input)
    grad_input = from_channels_last<Device>(cast(*tensors.grad_features, dtype), is_channels_last(input));
  if (needs.offset) grad_offset = cast(*tensors.grad_offset, offset.scalar_type());
  if (needs.mask) grad_mask = cast(*tensors.grad_mask, mask->scalar_type());
  if (needs.weight) {
    const Tensor grid = reshaped(*tensors.grad_matrices, {shape.out_channels, shape.kernel_height,
                                                          shape.kernel_width, shape.group_channels()});
    grad_weight = from_channels_last<Device>(cast(grid, dtype), is_channels_last(weight));
  }
  return {grad_input, grad_offset, grad_weight, grad_mask};
}

}  // namespace dcn_det
