// Non-maximum suppression on CUDA: launches the kernels of nms.cuh.
#include <cuda_runtime.h>

#include <tuple>

#include "common/nms_driver.h"
#include "cuda/launch.h"
#include "cuda/nms.cuh"

namespace dcn_det {
namespace {

// Values in decreasing order, NaN first, and their indices; equal values keep their order.
std::tuple<Tensor, Tensor> sort_descending(const Tensor& values) {
  using torch::stable::detail::from, torch::stable::detail::to;
  std::array<StableIValue, 4> stack{from(values), from(std::optional<bool>(true)), from(int64_t(0)),
                                    from(true)};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  return {to<Tensor>(stack[0]), to<Tensor>(stack[1])};
}

Word* words_of(const Tensor& tensor) {
  static_assert(sizeof(Word) == sizeof(int64_t));
  return reinterpret_cast<Word*>(tensor.mutable_data_ptr<int64_t>());
}

struct Cuda {
  static Tensor suppress(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& labels,
                         double iou_threshold, int64_t limit) {
    if (boxes.scalar_type() == ScalarType::Double) {
      return suppress_as<double>(boxes, scores, labels, threshold_as<double>(iou_threshold), limit);
    }
    return suppress_as<float>(boxes, scores, labels, threshold_as<float>(iou_threshold), limit);
  }

  template <typename A>
  static Tensor suppress_as(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& labels,
                            A threshold, int64_t limit) {
    const DeviceGuard guard(boxes.get_device_index());
    const cudaStream_t stream = current_stream(boxes);
    const int64_t count = boxes.size(0), words = (count + kWordBits - 1) / kWordBits;
    const int64_t most_strip_words = std::min<int64_t>(words, kStripWords);
    STD_TORCH_CHECK(words <= INT32_MAX, "nms: too many boxes");  // limit of a grid's width

    const auto [sorted_scores, order] = sort_descending(scores);
    const Tensor sorted = uninitialized(boxes, {count, 4});
    const Tensor overlaps =
        uninitialized(order, {most_strip_words * kWordBits, words});  // bits, like `dropped`
    const Tensor dropped = torch::stable::new_zeros(order, {words});
    const Tensor kept = uninitialized(order, {limit});
    const Tensor kept_count = torch::stable::new_zeros(order, {1});
    const int64_t* label_data = nullptr;
    int64_t* sorted_label_data = nullptr;
    std::optional<Tensor> sorted_labels;
    if (labels.has_value()) {
      sorted_labels = uninitialized(order, {count});
      label_data = labels->const_data_ptr<int64_t>();
      sorted_label_data = sorted_labels->mutable_data_ptr<int64_t>();
    }
    int64_t* const found = kept_count.mutable_data_ptr<int64_t>();
    const NmsMemory<A> memory{boxes.const_data_ptr<A>(),
                              sorted_scores.template const_data_ptr<A>(),
                              label_data,
                              order.template const_data_ptr<int64_t>(),
                              reinterpret_cast<Box<A>*>(sorted.mutable_data_ptr<A>()),
                              sorted_label_data,
                              words_of(dropped),
                              words_of(overlaps),
                              kept.mutable_data_ptr<int64_t>(),
                              found};
    launch_nms(memory, count, limit, threshold, kStripWords,
               [&](unsigned x, unsigned y, unsigned threads, auto kernel, auto... arguments) {
                 kernel<<<dim3(x, y), threads, 0, stream>>>(arguments...);
                 STD_CUDA_KERNEL_LAUNCH_CHECK();
               });
    // The only synchronization: the size of the result must be known here.
    int64_t size = 0;
    STD_CUDA_CHECK(cudaMemcpyAsync(&size, found, sizeof(size), cudaMemcpyDeviceToHost, stream));
    STD_CUDA_CHECK(cudaStreamSynchronize(stream));
    return narrowed(kept, 0, 0, size);
  }
};

}  // namespace
}  // namespace dcn_det

STABLE_TORCH_LIBRARY_IMPL(dcn_det, CUDA, m) { m.impl("nms", TORCH_BOX(&dcn_det::nms<dcn_det::Cuda>)); }
