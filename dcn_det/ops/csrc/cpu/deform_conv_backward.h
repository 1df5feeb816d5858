// The backward pass of the deformable convolution on the CPU.
//
// The input's channels are divided into blocks, each processed by one thread, some rows at a time, so that
// the columns stay in the core's cache: the thread computes the gradients of the columns, derives those of
// the samples, replaces the column gradients by the columns, and computes the gradient of the weight. No two
// threads write to the same place. Blocks and rows, and with them the order of sums, depend only on the
// shape, not on the number of threads.
#pragma once

#include <memory>
#include <vector>

#include "common/deform_conv_driver.h"
#include "cpu/deform_conv_loops.h"
#include "cpu/serial_products.h"

namespace dcn_det {

template <typename T>
class CpuBackward {
  using A = accumulate_t<T>;
  static constexpr bool kExact = std::is_same_v<T, A>;
  static constexpr int kBlockChannels = 64;
  static constexpr int64_t kSampleBytes = 16 << 20;    // limits the output positions processed at a time
  static constexpr int64_t kColumnBytes = 576 * 1024;  // of a block's columns

 public:
  CpuBackward(const DeformConvShape& shape, const BackwardTensors& tensors, const Needs& needs)
      : shape_(shape), tensors_(tensors), needs_(needs) {
    const int group_channels = shape.group_channels(), offset_channels = shape.offset_group_channels();
    for (int begin = 0, end; begin < shape.channels; begin = end) {
      const int group = begin / group_channels, offset_group = begin / offset_channels;
      end = std::min(
          {begin + kBlockChannels, (group + 1) * group_channels, (offset_group + 1) * offset_channels});
      blocks_.push_back({begin, end, group, offset_group});
    }
    const int64_t row_samples = static_cast<int64_t>(shape.offset_groups) * shape.taps();
    const int64_t most = std::max<int64_t>(kSampleBytes / (row_samples * sizeof(Sample<A>)), 256);
    rows_ = std::min(most, shape.positions());
    samples_ = std::make_unique_for_overwrite<Sample<A>[]>(rows_ * row_samples);
    if (sample_grads()) {
      shares_ = std::make_unique_for_overwrite<SampleGrad<A>[]>(blocks_.size() * rows_ * shape.taps());
    }
    for (const ChannelBlock& block : blocks_) {
      const int64_t depth = static_cast<int64_t>(shape.taps()) * block.size();
      weights_.push_back(uninitialized(tensors.matrices, {out_channels(), depth}));
      if (needs.weight) {
        grad_weights_.push_back(uninitialized(*tensors.grad_matrices, {out_channels(), depth}));
      }
    }
  }

  void run() {
    for (int64_t first = 0; first < shape_.positions(); first += rows_) {
      const int64_t rows = std::min(rows_, shape_.positions() - first);
      locate(first, rows);
      // Few parallel regions, because each ends with a wait for the slowest thread.
      parallel_with_products(static_cast<int64_t>(blocks_.size()), [&](int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; ++b) {
          if (first == 0) start_block(b);
          run_block(b, first, rows);
          if (first + rows == shape_.positions()) finish_block(b);
        }
      });
      if (sample_grads()) sum_shares(first, rows);
    }
  }

 private:
  int64_t out_channels() const { return shape_.out_channels / shape_.groups; }
  bool sample_grads() const { return needs_.offset || needs_.mask; }

  void start_block(int64_t b) {
    copy_block(blocks_[b], weights_[b].template mutable_data_ptr<T>(),
               tensors_.matrices.template const_data_ptr<T>(),
               [](T& in_block, const T& in_whole) { in_block = in_whole; });
    if (needs_.weight)
      std::fill_n(grad_weights_[b].template mutable_data_ptr<A>(), grad_weights_[b].numel(), A(0));
  }

  void finish_block(int64_t b) {
    if (!needs_.weight) return;
    copy_block(blocks_[b], grad_weights_[b].template mutable_data_ptr<A>(),
               tensors_.grad_matrices->template mutable_data_ptr<A>(),
               [](const A& in_block, A& in_whole) { in_whole = in_block; });
  }

  // Calls copy(element of the block, element of the whole) for (out_channels, taps, channels) matrices.
  template <typename V, typename W, typename Copy>
  void copy_block(const ChannelBlock& block, V* in_block, W* whole, const Copy& copy) const {
    const int64_t group_channels = shape_.group_channels(), lines = out_channels() * shape_.taps();
    W* in_whole = whole + block.group * lines * group_channels + block.begin - block.group * group_channels;
    for (int64_t line = 0; line < lines; ++line, in_block += block.size(), in_whole += group_channels) {
      for (int c = 0; c < block.size(); ++c) copy(in_block[c], in_whole[c]);
    }
  }

  void locate(int64_t first, int64_t rows) {
    const auto offset = planes_of<const A>(tensors_.offset);
    const auto mask = planes_of<const A>(tensors_.mask);
    torch::stable::parallel_for(first, first + rows, 64, [&](int64_t begin, int64_t end) {
      locate_samples(shape_, offset, mask, samples_.get(), first, begin, end);
    });
  }

  void run_block(int64_t b, int64_t first, int64_t rows) {
    const ChannelBlock& block = blocks_[b];
    const int64_t depth = static_cast<int64_t>(shape_.taps()) * block.size();
    const int64_t step = std::max<int64_t>(kColumnBytes / (depth * sizeof(T)), 32);
    const Tensor buffer = uninitialized(weights_[b], {std::min(step, rows), depth});
    Tensor product;
    if (needs_.weight && !kExact) product = uninitialized(weights_[b], {out_channels(), depth});
    const T* features = tensors_.features.template const_data_ptr<T>();
    A* grad_features = needs_.input ? tensors_.grad_features->template mutable_data_ptr<A>() : nullptr;
    for (int64_t row = 0; row < rows; row += step) {
      const int64_t count = std::min(step, rows - row);
      const Tensor columns = narrowed(buffer, 0, 0, count);
      const Tensor grad = tile_of(tensors_.grad_rows, shape_, first + row, count, block.group);
      if (needs_.samples()) multiply(columns, grad, weights_[b]);
      SampleGrad<A>* share = sample_grads() ? shares_.get() + (b * rows + row) * shape_.taps() : nullptr;
      vectorized<SweepBlock>(
          shape_, block, features, samples_.get() + row * shape_.offset_groups * shape_.taps(),
          columns.template mutable_data_ptr<T>(), grad_features, share, needs_.weight, first + row, count);
      if (!needs_.weight) continue;
      const Tensor grad_columns = transposed(grad);
      if constexpr (kExact) {
        multiply_add(grad_weights_[b], grad_weights_[b], grad_columns, columns);
      } else {
        multiply(product, grad_columns, columns);
        vectorized<AddTo>(grad_weights_[b].template mutable_data_ptr<A>(),
                          product.template const_data_ptr<T>(), product.numel());
      }
    }
  }

  // Adds up the blocks' shares of the samples' gradients, in block order.
  void sum_shares(int64_t first, int64_t rows) {
    const auto grad_offset = planes_of<A>(tensors_.grad_offset);
    const auto grad_mask = planes_of<A>(tensors_.grad_mask);
    const int taps = shape_.taps();
    torch::stable::parallel_for(0, rows, 64, [&](int64_t begin, int64_t end) {
      std::vector<SampleGrad<A>> sums(static_cast<size_t>(shape_.offset_groups) * taps);
      for (int64_t row = begin; row < end; ++row) {
        std::fill(sums.begin(), sums.end(), SampleGrad<A>{0, 0, 0});
        for (size_t b = 0; b < blocks_.size(); ++b) {
          const SampleGrad<A>* share = shares_.get() + (b * rows + row) * taps;
          SampleGrad<A>* sum = sums.data() + blocks_[b].offset_group * taps;
          for (int tap = 0; tap < taps; ++tap) {
            sum[tap].y += share[tap].y;
            sum[tap].x += share[tap].x;
            sum[tap].modulation += share[tap].modulation;
          }
        }
        const auto [image, cell] = divide(first + row, shape_.out_cells());
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

  const DeformConvShape& shape_;
  const BackwardTensors& tensors_;
  const Needs& needs_;
  std::vector<ChannelBlock> blocks_;
  std::vector<Tensor> weights_, grad_weights_;  // per block: (out_channels, taps * channels of the block)
  int64_t rows_;
  std::unique_ptr<Sample<A>[]> samples_;     // (rows, offset groups, taps)
  std::unique_ptr<SampleGrad<A>[]> shares_;  // (blocks, rows, taps)
};

}  // namespace dcn_det
