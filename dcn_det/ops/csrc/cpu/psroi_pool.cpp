// Position-sensitive RoI pooling on the CPU: means of whole cells.
#include "cpu/no_contraction.h"

#include "common/roi_arguments.h"
#include "cpu/roi_tiles.h"

namespace dcn_det {
namespace {

template <typename T>
void list_axis(T origin, T extent, int bins, int size, CellLists<T>& lists) {
  for (int bin = 0; bin < bins; ++bin) {
    lists.open();
    const CellRange cells = psroi_bin_cells(origin, extent, bin, bins, size);
    for (int cell = cells.begin; cell < cells.end; ++cell) lists.add(cell, T(1), T(0));
    lists.divide(static_cast<T>(cells.size()));
  }
}

template <typename T>
CellPlan<T> make_plan(const PsroiSizes& sizes, const Tensor& rois, double spatial_scale) {
  const T* rows = rois.const_data_ptr<T>();
  const auto region = [&](int64_t r) {
    return read_roi(rows + r * 5, static_cast<T>(spatial_scale), T(0), sizes.images);
  };
  CellPlan<T> plan(sizes, 1, false, rows, [&](int64_t r) { return region(r).valid; });
  torch::stable::parallel_for(0, sizes.rois, grain(sizes.pooled * 64), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const Roi<T> roi = region(r);
      list_axis(roi.y, roi.height, sizes.pooled, sizes.height, plan.lists(0, r));
      list_axis(roi.x, roi.width, sizes.pooled, sizes.width, plan.lists(0, r));
    }
  });
  return plan;
}

template <typename T>
Tensor forward(const Tensor& input, const Tensor& rois, const PsroiSizes& sizes, double spatial_scale) {
  return pool_cells(make_plan<T>(sizes, rois, spatial_scale), input);
}

template <typename T>
Tensor backward(const Tensor& grad_output, const Tensor& rois, const PsroiSizes& sizes,
                double spatial_scale) {
  return input_gradient(make_plan<T>(sizes, rois, spatial_scale), grad_output);
}

Tensor psroi_pool(const Tensor& input, const Tensor& rois, double spatial_scale, int64_t output_dim,
                  int64_t group_size, int64_t pooled_size) {
  const PsroiSizes sizes = psroi_sizes(input, rois, output_dim, group_size, pooled_size);
  const Tensor map = readable_map(cast(input, accumulate_dtype(input.scalar_type())), sizes);
  const auto run = input.scalar_type() == ScalarType::Double ? forward<double> : forward<float>;
  return cast(run(map, dense(rois), sizes, spatial_scale), input.scalar_type());
}

Tensor psroi_pool_backward(const Tensor& grad_output, const Tensor& rois, int64_t batch, int64_t height,
                           int64_t width, double spatial_scale, int64_t group_size) {
  const PsroiSizes sizes = psroi_sizes(grad_output, rois, batch, height, width, group_size);
  const auto run = grad_output.scalar_type() == ScalarType::Double ? backward<double> : backward<float>;
  return cast(run(grad_output, dense(rois), sizes, spatial_scale), grad_output.scalar_type());
}

}  // namespace
}  // namespace dcn_det

STABLE_TORCH_LIBRARY_IMPL(dcn_det, CPU, m) {
  m.impl("psroi_pool", TORCH_BOX(&dcn_det::psroi_pool));
  m.impl("psroi_pool_backward", TORCH_BOX(&dcn_det::psroi_pool_backward));
  m.impl("psroi_pool_backward_deterministic", TORCH_BOX(&dcn_det::psroi_pool_backward));
}
