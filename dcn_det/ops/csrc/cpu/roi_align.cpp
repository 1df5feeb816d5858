// RoI align on the CPU.
#include "cpu/no_contraction.h"

#include "common/roi_align.h"
#include "cpu/roi_tiles.h"

namespace dcn_det {
namespace {

template <typename T>
void list_axis(const RoiAlignAxis<T>& axis, int bins, CellLists<T>& lists) {
  for (int bin = 0; bin < bins; ++bin) {
    lists.open();
    const CellRange samples = axis.candidates(bin);
    for (int i = samples.begin; i < samples.end; ++i) {
      const T position = axis.position(bin, i);
      if (axis.reads(position)) lists.add_sample(axis.clamp(position));
    }
    lists.divide(static_cast<T>(axis.samples));
  }
}

template <typename T>
CellPlan<T> make_plan(const RoiAlignSizes& sizes, const Tensor& rois, double spatial_scale) {
  const T* rows = rois.const_data_ptr<T>();
  const T scale = static_cast<T>(spatial_scale);
  CellPlan<T> plan(sizes, 1, false, rows,
                   [&](int64_t r) { return is_valid_roi(rows + r * 5, sizes.images); });
  torch::stable::parallel_for(0, sizes.rois, grain(sizes.pooled * 64), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const T* roi = rows + r * 5;
      if (!is_valid_roi(roi, sizes.images)) continue;
      list_axis(RoiAlignAxis<T>(roi[2], roi[4], scale, sizes, sizes.height), sizes.pooled, plan.lists(0, r));
      list_axis(RoiAlignAxis<T>(roi[1], roi[3], scale, sizes, sizes.width), sizes.pooled, plan.lists(0, r));
    }
  });
  return plan;
}

template <typename T>
Tensor forward(const Tensor& input, const Tensor& rois, const RoiAlignSizes& sizes, double spatial_scale) {
  return pool_cells(make_plan<T>(sizes, rois, spatial_scale), input);
}

template <typename T>
Tensor backward(const Tensor& grad_output, const Tensor& rois, const RoiAlignSizes& sizes,
                double spatial_scale) {
  return input_gradient(make_plan<T>(sizes, rois, spatial_scale), grad_output);
}

Tensor roi_align(const Tensor& input, const Tensor& rois, double spatial_scale, int64_t pooled_size,
                 int64_t sampling_ratio, bool aligned) {
  const RoiAlignSizes sizes = roi_align_sizes(input, rois, pooled_size, sampling_ratio, aligned);
  const Tensor map = readable_map(cast(input, accumulate_dtype(input.scalar_type())), sizes);
  const auto run = input.scalar_type() == ScalarType::Double ? forward<double> : forward<float>;
  return cast(run(map, dense(rois), sizes, spatial_scale), input.scalar_type());
}

Tensor roi_align_backward(const Tensor& grad_output, const Tensor& rois, int64_t batch, int64_t height,
                          int64_t width, double spatial_scale, int64_t sampling_ratio, bool aligned) {
  const RoiAlignSizes sizes =
      roi_align_sizes(grad_output, rois, batch, height, width, sampling_ratio, aligned);
  const auto run = grad_output.scalar_type() == ScalarType::Double ? backward<double> : backward<float>;
  return cast(run(grad_output, dense(rois), sizes, spatial_scale), grad_output.scalar_type());
}

}  // namespace
}  // namespace dcn_det

STABLE_TORCH_LIBRARY_IMPL(dcn_det, CPU, m) {
  m.impl("roi_align", TORCH_BOX(&dcn_det::roi_align));
  m.impl("roi_align_backward", TORCH_BOX(&dcn_det::roi_align_backward));
  m.impl("roi_align_backward_deterministic", TORCH_BOX(&dcn_det::roi_align_backward));
}
