// Non-maximum suppression on CUDA: launches of the kernels in nms.cuh, and one wait for the size of the
// result.
#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>

#include <limits>

#include "common/nms_arguments.h"
#include "cuda/launch.h"
#include "cuda/nms.cuh"

namespace dcn_det {
namespace {

constexpr int kSweepThreads = 1024;

// Indices that sort keys in decreasing order; equal keys keep theirs.
Tensor descending_order(const Tensor& keys) {
  return call_operator("aten::argsort", "stable", keys, true, int64_t(0), true);
}

Tensor nms(const Tensor& boxes, const Tensor& scores, std::optional<Tensor> labels, double iou_threshold,
           std::optional<int64_t> max_keep) {
  check_nms(boxes, scores, labels);
  const torch::stable::accelerator::DeviceGuard guard(boxes.get_device_index());
  const int64_t size = boxes.size(0), words = (size + kWordBits - 1) / kWordBits;
  const int64_t most = max_keep.value_or(std::numeric_limits<int64_t>::max());
  Tensor kept = torch::stable::new_empty(boxes, {size}, ScalarType::Long);
  if (size == 0 || most <= 0) return torch::stable::narrow(kept, 0, 0, 0);
  const Tensor corners = torch::stable::contiguous(boxes), values = torch::stable::contiguous(scores);
  if (labels) labels = torch::stable::contiguous(*labels);
  const int64_t* label_of = labels ? labels->const_data_ptr<int64_t>() : nullptr;
  Tensor keys = torch::stable::empty_like(values);
  Tensor masks = torch::stable::new_empty(boxes, {size * words}, ScalarType::Long);
  Tensor removed = torch::stable::new_empty(boxes, {words}, ScalarType::Long);
  Tensor count = torch::stable::new_empty(boxes, {1}, ScalarType::Long);
  torch::stable::zero_(removed);
  const auto bits_of = [](const Tensor& tensor) { return static_cast<uint64_t*>(tensor.mutable_data_ptr()); };
  const cudaStream_t stream = current_stream(boxes);

  Tensor order;
  const auto mark = [&]<typename A>() {
    nms_keys_kernel<A><<<blocks_for(size), kThreads, 0, stream>>>(size, corners.template const_data_ptr<A>(),
                                                                  values.template const_data_ptr<A>(),
                                                                  keys.template mutable_data_ptr<A>());
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    order = descending_order(keys);
    const int64_t pairs = words * (words + 1) / 2;
    nms_masks_kernel<A><<<static_cast<unsigned>(std::min<int64_t>(pairs, 1 << 20)), kWordBits, 0, stream>>>(
        size, words, corners.template const_data_ptr<A>(), values.template const_data_ptr<A>(), label_of,
        order.const_data_ptr<int64_t>(), round_down<A>(iou_threshold), bits_of(masks));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  };
  if (boxes.scalar_type() == ScalarType::Double)
    mark.operator()<double>();
  else
    mark.operator()<float>();
  nms_sweep_kernel<<<1, kSweepThreads, 0, stream>>>(
      size, words, bits_of(masks), order.const_data_ptr<int64_t>(), most, bits_of(removed),
      kept.mutable_data_ptr<int64_t>(), count.mutable_data_ptr<int64_t>());
  STD_CUDA_KERNEL_LAUNCH_CHECK();

  int64_t found = 0;
  STD_CUDA_CHECK(
      cudaMemcpyAsync(&found, count.const_data_ptr(), sizeof(found), cudaMemcpyDeviceToHost, stream));
  STD_CUDA_CHECK(cudaStreamSynchronize(stream));
  return torch::stable::narrow(kept, 0, 0, found);
}

}  // namespace
}  // namespace dcn_det

STABLE_TORCH_LIBRARY_IMPL(dcn_det, CUDA, m) { m.impl("nms", TORCH_BOX(&dcn_det::nms)); }
