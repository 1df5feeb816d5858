// Arguments of the deformable convolution: checks, and the layouts that kernels read.
#pragma once

#include <string>
#include <vector>

#include "common/deform_conv_shape.h"
#include "common/tensor_ops.h"

namespace dcn_det {

struct DeformConvOptions {
  std::vector<int64_t> stride, padding, dilation;
  std::string border;
};

// Guards the memory that kernels access; the public Python function raises the errors that users see.
inline DeformConvShape describe(const Tensor& input, const Tensor& offset, const Tensor& weight,
                                const std::optional<Tensor>& mask, const DeformConvOptions& options) {
  STD_TORCH_CHECK(input.dim() == 4 && offset.dim() == 4 && weight.dim() == 4,
                  "deform_conv2d: input, offset and weight must have 4 dimensions");
  STD_TORCH_CHECK(options.stride.size() == 2 && options.padding.size() == 2 && options.dilation.size() == 2,
                  "deform_conv2d: stride, padding and dilation must be pairs");
  STD_TORCH_CHECK(options.border == "zeros" || options.border == "dcn_v1",
                  "deform_conv2d: border must be 'zeros' or 'dcn_v1'");
  STD_TORCH_CHECK(on_same_device(offset, input) && on_same_device(weight, input) &&
                      (!mask.has_value() || on_same_device(*mask, input)),
                  "deform_conv2d: tensors are on different devices");
  STD_TORCH_CHECK(is_floating(input.scalar_type()) && is_floating(offset.scalar_type()),
                  "deform_conv2d: dtypes must be float32, float64, float16 or bfloat16");
  STD_TORCH_CHECK(input.scalar_type() == weight.scalar_type(),
                  "deform_conv2d: input and weight differ in dtype");
  for (int i = 0; i < 2; ++i) {
    STD_TORCH_CHECK(options.stride[i] > 0 && options.dilation[i] > 0 && options.padding[i] >= 0,
                    "deform_conv2d: stride and dilation must be positive, padding must not be negative");
    STD_TORCH_CHECK(options.stride[i] <= INT32_MAX && options.dilation[i] <= INT32_MAX &&
                        options.padding[i] <= INT32_MAX && weight.size(2 + i) <= INT32_MAX,
                    "deform_conv2d: stride, padding, dilation or kernel is too large");
  }
  for (int i = 1; i < 4; ++i) {
    STD_TORCH_CHECK(input.size(i) > 0 && weight.size(i) > 0, "deform_conv2d: input or weight is empty");
  }
  const int64_t taps = weight.size(2) * weight.size(3);
  const int64_t groups = input.size(1) / weight.size(1);
  const int64_t offset_groups = offset.size(1) / (2 * taps);
  STD_TORCH_CHECK(taps <= INT32_MAX, "deform_conv2d: the kernel is too large");
  STD_TORCH_CHECK(groups > 0 && input.size(1) == groups * weight.size(1) && weight.size(0) > 0 &&
                      weight.size(0) % groups == 0,
                  "deform_conv2d: channels of input and weight do not match");
  STD_TORCH_CHECK(
      offset_groups > 0 && offset.size(1) == 2 * taps * offset_groups && input.size(1) % offset_groups == 0,
      "deform_conv2d: channels of input and offset do not match");
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
                    "deform_conv2d: mask does not match offset");
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

// Whether the stride between consecutive cells is the same everywhere in a plane.
inline bool has_dense_planes(const Tensor& self) {
  return self.size(2) == 1 || self.size(3) == 1 || self.stride(2) == self.stride(3) * self.size(3);
}

// Offsets and masks in the dtype of sums, as kernels read them.
inline Tensor dense_planes(const Tensor& self, ScalarType dtype) {
  const Tensor planes = cast(self, dtype);
  return has_dense_planes(planes) ? planes : dense(planes);
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

// An uninitialized tensor with the shape and layout of `like`.
inline Tensor empty_planes(const Tensor& like, ScalarType dtype) {
  if (!is_channels_last(like)) return uninitialized(like, like.sizes(), dtype);
  return permuted(uninitialized(like, {like.size(0), like.size(2), like.size(3), like.size(1)}, dtype),
                  {0, 3, 1, 2});
}

// One matrix per group: (groups, out_channels / groups, taps * channels / groups).
template <typename Device>
Tensor weight_matrices(const Tensor& weight, const DeformConvShape& shape) {
  const int64_t depth = static_cast<int64_t>(shape.taps()) * shape.group_channels();
  return reshaped(to_channels_last<Device>(detached(weight)),
                  {shape.groups, shape.out_channels / shape.groups, depth});
}

}  // namespace dcn_det
