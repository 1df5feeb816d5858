// Deformable convolution on the CPU.
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include <vector>

#include "common/deform_conv_driver.h"
#include "cpu/deform_conv_loops.h"

namespace dcn_det {
namespace {

void fill(const DeformConvShape& shape, const Tensor& features, const Tensor& offset,
          const std::optional<Tensor>& mask, const Tensor& columns, int64_t first, int64_t rows) {
  dispatch_floating(features.scalar_type(), "deform_conv2d", [&]<typename T>() {
    using A = accumulate_t<T>;
    const T* map = features.const_data_ptr<T>();
    const auto offsets = planes_of<const A>(offset);
    const auto masks = planes_of<const A>(mask);
    const Columns<T> out = columns_of<T>(shape, columns);
    torch::stable::parallel_for(first, first + rows, 8, [&](int64_t begin, int64_t end) {
      fill_columns(shape, map, offsets, masks, out, first, begin, end);
    });
  });
}

std::vector<ChannelBlock> channel_blocks(const DeformConvShape& shape) {
  const int group_channels = shape.group_channels(), offset_channels = shape.offset_group_channels();
  std::vector<ChannelBlock> blocks;
  for (int begin = 0, end; begin < shape.channels; begin = end) {
    const int offset_group = begin / offset_channels;
    end = std::min({begin + kBlockChannels, (begin / group_channels + 1) * group_channels,
                    (offset_group + 1) * offset_channels});
    blocks.push_back({begin, end, offset_group});
  }
  return blocks;
}

// Adds the blocks' shares of the samples' gradients, in the order of the blocks.
template <typename A>
void sum_blocks(const DeformConvShape& shape, const std::vector<ChannelBlock>& blocks,
                const std::vector<SampleGrad<A>>& shares, const Planes<A>& grad_offset,
                const Planes<A>& grad_mask, int64_t first, int64_t rows) {
  const int taps = shape.taps();
  torch::stable::parallel_for(0, rows, 64, [&](int64_t begin, int64_t end) {
    std::vector<SampleGrad<A>> sums(static_cast<size_t>(shape.offset_groups) * taps);
    for (int64_t row = begin; row < end; ++row) {
      std::fill(sums.begin(), sums.end(), SampleGrad<A>{0, 0, 0});
      for (size_t b = 0; b < blocks.size(); ++b) {
        const SampleGrad<A>* share = shares.data() + (b * rows + row) * taps;
        SampleGrad<A>* sum = sums.data() + blocks[b].offset_group * taps;
        for (int tap = 0; tap < taps; ++tap) {
          sum[tap].y += share[tap].y;
          sum[tap].x += share[tap].x;
          sum[tap].modulation += share[tap].modulation;
        }
      }
      const int64_t image = (first + row) / shape.out_cells(), cell = (first + row) % shape.out_cells();
      for (int64_t channel = 0; channel < static_cast<int64_t>(sums.size()); ++channel) {
        if (grad_offset.data != nullptr) {
          grad_offset.at(image, 2 * channel, cell) = sums[channel].y;
          grad_offset.at(image, 2 * channel + 1, cell) = sums[channel].x;
        }
        if (grad_mask.data != nullptr) grad_mask.at(image, channel, cell) = sums[channel].modulation;
      }
    }
  });
}

void sweep(const DeformConvShape& shape, const SweepTensors& tensors, const Needs& needs,
           const Tensor& columns, int64_t first, int64_t rows) {
  dispatch_floating(tensors.features.scalar_type(), "deform_conv2d_backward", [&]<typename T>() {
    using A = accumulate_t<T>;
    const auto offset = planes_of<const A>(tensors.offset);
    const auto mask = planes_of<const A>(tensors.mask);
    std::vector<Sample<A>> samples(rows * shape.offset_groups * shape.taps());
    torch::stable::parallel_for(first, first + rows, 64, [&](int64_t begin, int64_t end) {
      locate_samples(shape, offset, mask, samples.data(), first, begin, end);
    });

    const std::vector<ChannelBlock> blocks = channel_blocks(shape);
    const bool sample_grads = needs.offset || needs.mask;
    std::vector<SampleGrad<A>> shares(sample_grads ? blocks.size() * rows * shape.taps() : 0);
    const T* map = tensors.features.const_data_ptr<T>();
    A* grad_map = needs.input ? tensors.grad_features->mutable_data_ptr<A>() : nullptr;
    const Columns<T> tile = columns_of<T>(shape, columns);
    torch::stable::parallel_for(0, static_cast<int64_t>(blocks.size()), 1, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        SampleGrad<A>* share = sample_grads ? shares.data() + b * rows * shape.taps() : nullptr;
        sweep_block(shape, blocks[b], map, samples.data(), tile, grad_map, share, needs.weight, first, rows);
      }
    });
    if (sample_grads) {
      sum_blocks(shape, blocks, shares, planes_of<A>(tensors.grad_offset), planes_of<A>(tensors.grad_mask),
                 first, rows);
    }
  });
}

struct Cpu {
  // A tile of columns stays in the cache between being made and being multiplied.
  static constexpr int64_t kForwardTileBytes = 6 << 20;
  // The weight's gradient is read and written once for each tile, which asks for larger ones.
  static constexpr int64_t kBackwardTileBytes = 12 << 20;
  static constexpr auto fill = dcn_det::fill;
  static constexpr auto sweep = dcn_det::sweep;

  static void multiply_add(const Tensor& out, const Tensor& self, const Tensor& a, const Tensor& b) {
    STABLE_TORCH_ERROR_CODE_CHECK(
        aoti_torch_cpu_addmm_out(out.get(), self.get(), a.get(), b.get(), 1.0, 1.0));
  }
};

}  // namespace
}  // namespace dcn_det

STABLE_TORCH_LIBRARY_IMPL(dcn_det, CPU, m) {
  m.impl("deform_conv2d", TORCH_BOX(&dcn_det::deform_conv2d<dcn_det::Cpu>));
  m.impl("deform_conv2d_backward", TORCH_BOX(&dcn_det::deform_conv2d_backward<dcn_det::Cpu>));
}
