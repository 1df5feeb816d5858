// Position-sensitive RoI pooling on the CPU: the mean of whole cells. Every output channel reads planes of
// its own, so threads share no plane and every sum has a fixed order.
#include <vector>

#include "common/roi_arguments.h"
#include "cpu/roi_loops.h"

namespace dcn_det {
namespace {

// The cells of every bin, found once for all channels.
template <typename T>
struct Bins {
  PsroiSizes sizes;
  std::vector<bool> valid;
  std::vector<int64_t> image;
  std::vector<CellRange> rows, columns;  // pooled each per region
  std::vector<int64_t> plane_of_bin;     // from an output channel's first plane

  Bins(const PsroiSizes& sizes, const Tensor& rois, double spatial_scale) : sizes(sizes) {
    const T* row = rois.const_data_ptr<T>();
    for (int64_t r = 0; r < sizes.rois; ++r, row += 5) {
      const Roi<T> roi = read_roi(row, static_cast<T>(spatial_scale), T(0), sizes.images);
      valid.push_back(roi.valid);
      image.push_back(roi.image);
      for (int bin = 0; bin < sizes.pooled; ++bin) {
        rows.push_back(psroi_bin_cells(roi.y, roi.height, bin, sizes.pooled, sizes.height));
        columns.push_back(psroi_bin_cells(roi.x, roi.width, bin, sizes.pooled, sizes.width));
      }
    }
    for (int i = 0; i < sizes.pooled; ++i)
      for (int j = 0; j < sizes.pooled; ++j)
        plane_of_bin.push_back(sizes.source_channel(0, i, j) * sizes.height * sizes.width);
  }

  // Calls visit(plane, rows, columns, bin) for the bins of a region and an output channel, which starts
  // `first_plane` into the map.
  template <typename Visit>
  void for_each(int64_t r, int64_t channel, Visit&& visit) const {
    const int64_t plane = int64_t(sizes.height) * sizes.width;
    const int64_t first = (image[r] * sizes.input_channels() + channel * sizes.group * sizes.group) * plane;
    for (int i = 0, bin = 0; i < sizes.pooled; ++i)
      for (int j = 0; j < sizes.pooled; ++j, ++bin)
        visit(first + plane_of_bin[bin], rows[r * sizes.pooled + i], columns[r * sizes.pooled + j], bin);
  }
};

template <typename T>
void pool(const Bins<T>& bins, const T* input, T* output) {
  const PsroiSizes& sizes = bins.sizes;
  // Channel after channel, so that a channel's planes stay in the cache while all regions read them.
  torch::stable::parallel_for(
      0, sizes.output_dim * sizes.rois, grain(sizes.bins() * 16), [&](int64_t begin, int64_t end) {
        for (int64_t item = begin; item < end; ++item) {
          const int64_t channel = item / sizes.rois, r = item % sizes.rois;
          T* out = output + (r * sizes.output_dim + channel) * sizes.bins();
          std::fill(out, out + sizes.bins(), T(0));
          if (!bins.valid[r]) continue;
          bins.for_each(r, channel, [&](int64_t plane, CellRange rows, CellRange columns, int bin) {
            const int64_t area = int64_t(rows.size()) * columns.size();
            T sum = 0;
            for (int y = rows.begin; y < rows.end; ++y)
              for (int x = columns.begin; x < columns.end; ++x)
                sum += input[plane + int64_t(y) * sizes.width + x];
            if (area > 0) out[bin] = sum / static_cast<T>(area);
          });
        }
      });
}

template <typename T>
void pool_backward(const Bins<T>& bins, const T* grad_output, T* grad_input) {
  const PsroiSizes& sizes = bins.sizes;
  torch::stable::parallel_for(
      0, sizes.output_dim, grain(sizes.rois * sizes.bins() * 16), [&](int64_t begin, int64_t end) {
        for (int64_t channel = begin; channel < end; ++channel)
          for (int64_t r = 0; r < sizes.rois; ++r) {
            if (!bins.valid[r]) continue;
            const T* grad = grad_output + (r * sizes.output_dim + channel) * sizes.bins();
            bins.for_each(r, channel, [&](int64_t plane, CellRange rows, CellRange columns, int bin) {
              const T share = grad[bin] / static_cast<T>(int64_t(rows.size()) * columns.size());
              for (int y = rows.begin; y < rows.end; ++y)
                for (int x = columns.begin; x < columns.end; ++x)
                  grad_input[plane + int64_t(y) * sizes.width + x] += share;
            });
          }
      });
}

template <typename T>
Tensor forward(const Tensor& input, const Tensor& rois, const PsroiSizes& sizes, double spatial_scale) {
  const Tensor map = torch::stable::contiguous(cast(input, accumulate_dtype(input.scalar_type())));
  Tensor output = torch::stable::new_empty(map, {sizes.rois, sizes.output_dim, sizes.pooled, sizes.pooled});
  pool(Bins<T>(sizes, rois, spatial_scale), map.template const_data_ptr<T>(),
       output.template mutable_data_ptr<T>());
  return output;
}

template <typename T>
Tensor backward(const Tensor& grad_output, const Tensor& rois, const PsroiSizes& sizes,
                double spatial_scale) {
  const ScalarType type = accumulate_dtype(grad_output.scalar_type());
  const Tensor grad = torch::stable::contiguous(cast(grad_output, type));
  Tensor grad_input = new_zeros(grad, {sizes.images, sizes.input_channels(), sizes.height, sizes.width});
  pool_backward(Bins<T>(sizes, rois, spatial_scale), grad.template const_data_ptr<T>(),
                grad_input.template mutable_data_ptr<T>());
  return grad_input;
}

Tensor psroi_pool(const Tensor& input, const Tensor& rois, double spatial_scale, int64_t output_dim,
                  int64_t group_size, int64_t pooled_size) {
  const PsroiSizes sizes = psroi_sizes(input, rois, output_dim, group_size, pooled_size);
  const auto run = input.scalar_type() == ScalarType::Double ? forward<double> : forward<float>;
  return cast(run(input, torch::stable::contiguous(rois), sizes, spatial_scale), input.scalar_type());
}

Tensor psroi_pool_backward(const Tensor& grad_output, const Tensor& rois, int64_t batch, int64_t height,
                           int64_t width, double spatial_scale, int64_t group_size) {
  const PsroiSizes sizes = psroi_sizes(grad_output, rois, batch, height, width, group_size);
  const auto run = grad_output.scalar_type() == ScalarType::Double ? backward<double> : backward<float>;
  return cast(run(grad_output, torch::stable::contiguous(rois), sizes, spatial_scale),
              grad_output.scalar_type());
}

}  // namespace
}  // namespace dcn_det

STABLE_TORCH_LIBRARY_IMPL(dcn_det, CPU, m) {
  m.impl("psroi_pool", TORCH_BOX(&dcn_det::psroi_pool));
  m.impl("psroi_pool_backward", TORCH_BOX(&dcn_det::psroi_pool_backward));
}
