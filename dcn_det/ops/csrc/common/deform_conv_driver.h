// The deformable convolution as tiles of columns and matrix products, the same for every device. A device
// supplies what fills a tile of columns, and what turns a tile of their gradients into the gradients of the
// samples.
#pragma once

#include <algorithm>
#include <string>
#include <tuple>
#include <vector>

#include "common/deform_conv_shape.h"
#include "common/tensor_ops.h"

namespace dcn_det {

struct DeformConvOptions {
  std::vector<int64_t> stride, padding, dilation;
  std::string border;
};

// Guards the memory the kernels touch; the public Python function explains the user's mistakes.
inline DeformConvShape describe(const Tensor& input, const Tensor& offset, const Tensor& weight,
                                const std::optional<Tensor>& mask, const DeformConvOptions& options) {
  STD_TORCH_CHECK(input.dim() == 4 && offset.dim() == 4 && weight.dim() == 4,
                  "deform_conv2d: input, offset and weight must have 4 dimensions");
  STD_TORCH_CHECK(options.stride.size() == 2 && options.padding.size() == 2 && options.dilation.size() == 2,
                  "deform_conv2d: stride, padding and dilation must be pairs");
  STD_TORCH_CHECK(options.border == "zeros" || options.border == "dcn_v1",
                  "deform_conv2d: border must be 'zeros' or 'dcn_v1'");
  const auto beside_input = [&](const Tensor& tensor) {
    return tensor.is_cpu() == input.is_cpu() && tensor.is_cuda() == input.is_cuda() &&
           tensor.get_device_index() == input.get_device_index();
  };
  STD_TORCH_CHECK(beside_input(offset) && beside_input(weight) && (!mask.has_value() || beside_input(*mask)),
                  "deform_conv2d: tensors are on different devices");
  STD_TORCH_CHECK(input.scalar_type() == weight.scalar_type(),
                  "deform_conv2d: input and weight differ in dtype");
  for (int i = 0; i < 2; ++i) {
    STD_TORCH_CHECK(options.stride[i] > 0 && options.dilation[i] > 0 && options.padding[i] >= 0,
                    "deform_conv2d: stride and dilation must be positive, padding must not be negative");
  }
  for (int i = 1; i < 4; ++i) {
    STD_TORCH_CHECK(input.size(i) > 0 && weight.size(i) > 0, "deform_conv2d: input or weight is empty");
  }
  const int64_t taps = weight.size(2) * weight.size(3);
  const int64_t groups = input.size(1) / weight.size(1);
  const int64_t offset_groups = offset.size(1) / (2 * taps);
  STD_TORCH_CHECK(groups > 0 && input.size(1) == groups * weight.size(1) && weight.size(0) > 0 &&
                      weight.size(0) % groups == 0,
                  "deform_conv2d: channels of input and weight do not fit");
  STD_TORCH_CHECK(
      offset_groups > 0 && offset.size(1) == 2 * taps * offset_groups && input.size(1) % offset_groups == 0,
      "deform_conv2d: channels of input and offset do not fit");
  int64_t out_size[2];
  for (int i = 0; i < 2; ++i) {
    const int64_t span = options.dilation[i] * (weight.size(2 + i) - 1) + 1;
    const int64_t room = input.size(2 + i) + 2 * options.padding[i] - span;
    STD_TORCH_CHECK(room >= 0, "deform_conv2d: the kernel is larger than the padded input");
    out_size[i] = room / options.stride[i] + 1;
    STD_TORCH_CHECK(input.size(2 + i) + 2 * options.padding[i] <= INT32_MAX,
                    "deform_conv2d: input is too large");
  }
  STD_TORCH_CHECK(
      offset.size(0) == input.size(0) && offset.size(2) == out_size[0] && offset.size(3) == out_size[1],
      "deform_conv2d: offset does not have the output's batch, height and width");
  if (mask.has_value()) {
    STD_TORCH_CHECK(mask->dim() == 4 && mask->size(0) == offset.size(0) &&
                        mask->size(1) == taps * offset_groups && mask->size(2) == out_size[0] &&
                        mask->size(3) == out_size[1],
                    "deform_conv2d: mask does not fit offset");
  }
  const auto narrow = [](int64_t value) {
    STD_TORCH_CHECK(value <= INT32_MAX, "deform_conv2d: a dimension is too large");
    return static_cast<int>(value);
  };
  DeformConvShape shape;
  shape.batch = input.size(0);
  shape.channels = narrow(input.size(1));
  shape.height = narrow(input.size(2));
  shape.width = narrow(input.size(3));
  shape.out_channels = narrow(weight.size(0));
  shape.out_height = narrow(out_size[0]);
  shape.out_width = narrow(out_size[1]);
  shape.kernel_height = narrow(weight.size(2));
  shape.kernel_width = narrow(weight.size(3));
  shape.stride_y = narrow(options.stride[0]);
  shape.stride_x = narrow(options.stride[1]);
  shape.padding_y = narrow(options.padding[0]);
  shape.padding_x = narrow(options.padding[1]);
  shape.dilation_y = narrow(options.dilation[0]);
  shape.dilation_x = narrow(options.dilation[1]);
  shape.groups = narrow(groups);
  shape.offset_groups = narrow(offset_groups);
  shape.border = options.border == "zeros" ? Border::zeros : Border::dcn_v1;
  return shape;
}

// Whether a step of one cell is the same everywhere in a plane.
inline bool has_dense_planes(const Tensor& self) {
  return self.size(2) == 1 || self.size(3) == 1 || self.stride(2) == self.stride(3) * self.size(3);
}

// Offsets and masks as the kernels read them: in the dtype of sums.
inline Tensor dense_planes(const Tensor& self, ScalarType dtype) {
  const Tensor planes = cast(self, dtype);
  return has_dense_planes(planes) ? planes : torch::stable::contiguous(planes);
}

template <typename A>
Planes<A> planes_of(const Tensor& dense) {
  auto* data = static_cast<A*>(const_cast<void*>(dense.const_data_ptr()));
  return {data, dense.stride(0), dense.stride(1), dense.size(3) == 1 ? dense.stride(2) : dense.stride(3)};
}

template <typename A>
Planes<A> planes_of(const std::optional<Tensor>& dense) {
  return dense.has_value() ? planes_of<A>(*dense) : Planes<A>{nullptr, 0, 0, 0};
}

// An uninitialised tensor of the shape and the layout of `like`.
inline Tensor empty_planes(const Tensor& like, ScalarType dtype) {
  if (!is_channels_last(like)) return torch::stable::new_empty(like, like.sizes(), dtype);
  return permuted(
      torch::stable::new_empty(like, {like.size(0), like.size(2), like.size(3), like.size(1)}, dtype),
      {0, 3, 1, 2});
}

// (out_channels, channels, kernel_height, kernel_width) -> (groups, out_channels / groups, taps * channels /
// groups)
inline Tensor weight_matrices(const Tensor& weight, const DeformConvShape& shape) {
  const int64_t depth = static_cast<int64_t>(shape.taps()) * shape.group_channels();
  return torch::stable::view(to_channels_last(weight),
                             {shape.groups, shape.out_channels / shape.groups, depth});
}

// Output positions in a tile: as many as `bytes` of columns hold, in tiles of about equal size.
inline int64_t tile_rows(const DeformConvShape& shape, const Tensor& input, int64_t bytes) {
  const int64_t row_bytes = static_cast<int64_t>(shape.taps()) * shape.channels * input.element_size();
  const int64_t most = std::max<int64_t>(bytes / row_bytes, 32);
  const int64_t tiles = std::max<int64_t>((shape.positions() + most - 1) / most, 1);
  return (shape.positions() + tiles - 1) / tiles;
}

inline Tensor empty_columns(const DeformConvShape& shape, const Tensor& input, int64_t rows) {
  return torch::stable::new_empty(
      input, {shape.groups, rows, static_cast<int64_t>(shape.taps()) * shape.group_channels()});
}

template <typename T>
Columns<T> columns_of(const DeformConvShape& shape, const Tensor& columns) {
  return {columns.mutable_data_ptr<T>(), columns.stride(0), shape.groups, shape.group_channels(),
          shape.taps()};
}

// The rows of a tile, the columns of a group, of a (positions, out_channels) matrix.
inline Tensor tile_of(const Tensor& matrix, const DeformConvShape& shape, int64_t first, int64_t rows,
                      int group) {
  const int64_t width = shape.out_channels / shape.groups;
  return narrowed(narrowed(matrix, 0, first, rows), 1, group * width, width);
}

inline Tensor group_columns(const Tensor& columns, int group, int64_t rows) {
  return narrowed(torch::stable::select(columns, 0, group), 0, 0, rows);
}

template <typename Device>
Tensor deform_conv2d(const Tensor& input, const Tensor& offset, const Tensor& weight,
                     const std::optional<Tensor>& bias, const std::optional<Tensor>& mask,
                     std::vector<int64_t> stride, std::vector<int64_t> padding, std::vector<int64_t> dilation,
                     std::string border) {
  const DeformConvShape shape = describe(input, offset, weight, mask, {stride, padding, dilation, border});
  STD_TORCH_CHECK(!bias.has_value() || (bias->dim() == 1 && bias->size(0) == shape.out_channels),
                  "deform_conv2d: bias does not have the output's channels");
  const ScalarType sums = accumulate_dtype(input.scalar_type());
  const Tensor features = to_channels_last(input);
  const Tensor matrices = weight_matrices(weight, shape);
  const Tensor planes = dense_planes(offset, sums);
  std::optional<Tensor> mask_planes;
  if (mask.has_value()) mask_planes = dense_planes(*mask, sums);

  const int64_t rows = tile_rows(shape, input, Device::kForwardTileBytes);
  const Tensor columns = empty_columns(shape, input, rows);
  const Tensor output = torch::stable::new_empty(input, {shape.positions(), shape.out_channels});
  for (int64_t first = 0; first < shape.positions(); first += rows) {
    const int64_t count = std::min(rows, shape.positions() - first);
    Device::fill(shape, features, planes, mask_planes, columns, first, count);
    for (int group = 0; group < shape.groups; ++group) {
      const Tensor out = tile_of(output, shape, first, count, group);
      const Tensor tile = group_columns(columns, group, count);
      const Tensor matrix = torch::stable::transpose(torch::stable::select(matrices, 0, group), 0, 1);
      if (bias.has_value()) {
        Device::multiply_add(out, narrowed(*bias, 0, group * out.size(1), out.size(1)), tile, matrix);
      } else {
        multiply(out, tile, matrix);
      }
    }
  }
  const Tensor grid =
      torch::stable::view(output, {shape.batch, shape.out_height, shape.out_width, shape.out_channels});
  return from_channels_last(grid, is_channels_last(input));
}

// Which gradients are asked for.
struct Needs {
  bool input, offset, weight, mask;
  bool samples() const { return input || offset || mask; }
};

// What a sweep over a tile reads and writes. Gradients that are not asked for are absent.
struct SweepTensors {
  Tensor features, offset;
  std::optional<Tensor> mask, grad_features, grad_offset, grad_mask;
};

// The sum over tiles of grad_rows^T columns, one matrix for each group, in at least float32.
template <typename Device>
class WeightGradient {
 public:
  WeightGradient(const Tensor& matrices, ScalarType sums)
      : sum_(torch::stable::new_zeros(matrices, matrices.sizes(), sums)),
        exact_(sums == matrices.scalar_type()) {
    if (!exact_) product_ = torch::stable::new_empty(matrices, matrices.sizes());
  }

  void add(const DeformConvShape& shape, const Tensor& grad_rows, const Tensor& columns, int64_t first,
           int64_t count) {
    for (int group = 0; group < shape.groups; ++group) {
      const Tensor grad = torch::stable::transpose(tile_of(grad_rows, shape, first, count, group), 0, 1);
      const Tensor tile = group_columns(columns, group, count);
      if (exact_) {
        const Tensor sum = torch::stable::select(sum_, 0, group);
        Device::multiply_add(sum, sum, grad, tile);
      } else {
        multiply(torch::stable::select(product_, 0, group), grad, tile);
      }
    }
    if (!exact_) sum_ = torch::stable::subtract(sum_, product_, -1.0);
  }

  const Tensor& sum() const { return sum_; }

 private:
  Tensor sum_, product_;
  bool exact_;
};

template <typename Device>
std::tuple<Tensor, Tensor, Tensor, Tensor> deform_conv2d_backward(
    const Tensor& grad_output, const Tensor& input, const Tensor& offset, const Tensor& weight,
    const std::optional<Tensor>& mask, std::vector<int64_t> stride, std::vector<int64_t> padding,
    std::vector<int64_t> dilation, std::string border, bool need_input, bool need_offset, bool need_weight,
    bool need_mask) {
  const DeformConvShape shape = describe(input, offset, weight, mask, {stride, padding, dilation, border});
  STD_TORCH_CHECK(grad_output.dim() == 4 && grad_output.scalar_type() == input.scalar_type() &&
                      grad_output.size(0) == shape.batch && grad_output.size(1) == shape.out_channels &&
                      grad_output.size(2) == shape.out_height && grad_output.size(3) == shape.out_width,
                  "deform_conv2d_backward: grad_output does not have the output's shape and dtype");
  const Needs needs{need_input, need_offset, need_weight, need_mask && mask.has_value()};
  const ScalarType dtype = input.scalar_type(), sums = accumulate_dtype(dtype);
  const Tensor matrices = weight_matrices(weight, shape);
  const Tensor grad_rows =
      torch::stable::view(to_channels_last(grad_output), {shape.positions(), shape.out_channels});
  SweepTensors tensors{to_channels_last(input), dense_planes(offset, sums), {}, {}, {}, {}};
  if (mask.has_value()) tensors.mask = dense_planes(*mask, sums);
  if (needs.input) {
    tensors.grad_features = torch::stable::new_zeros(tensors.features, tensors.features.sizes(), sums);
  }
  if (needs.offset) tensors.grad_offset = empty_planes(offset, sums);
  if (needs.mask) tensors.grad_mask = empty_planes(*mask, sums);
  std::optional<WeightGradient<Device>> weight_gradient;
  if (needs.weight) weight_gradient.emplace(matrices, sums);

  const int64_t rows = tile_rows(shape, input, Device::kBackwardTileBytes);
  const Tensor columns = empty_columns(shape, input, rows);
  for (int64_t first = 0; first < shape.positions(); first += rows) {
    const int64_t count = std::min(rows, shape.positions() - first);
    if (needs.samples()) {
      for (int group = 0; group < shape.groups; ++group) {
        multiply(group_columns(columns, group, count), tile_of(grad_rows, shape, first, count, group),
                 torch::stable::select(matrices, 0, group));
      }
      Device::sweep(shape, tensors, needs, columns, first, count);
    } else if (needs.weight) {
      Device::fill(shape, tensors.features, tensors.offset, tensors.mask, columns, first, count);
    }
    if (needs.weight) weight_gradient->add(shape, grad_rows, columns, first, count);
  }

  const auto absent = [&] { return torch::stable::new_empty(input, {0}); };
  Tensor grad_input = absent(), grad_offset = absent(), grad_weight = absent(), grad_mask = absent();
  if (needs.input)
    grad_input = from_channels_last(cast(*tensors.grad_features, dtype), is_channels_last(input));
  if (needs.offset) grad_offset = cast(*tensors.grad_offset, offset.scalar_type());
  if (needs.mask) grad_mask = cast(*tensors.grad_mask, mask->scalar_type());
  if (needs.weight) {
    const Tensor grid = torch::stable::view(
        weight_gradient->sum(),
        {shape.out_channels, shape.kernel_height, shape.kernel_width, shape.group_channels()});
    grad_weight = from_channels_last(cast(grid, dtype), is_channels_last(weight));
  }
  return {grad_input, grad_offset, grad_weight, grad_mask};
}

}  // namespace dcn_det
