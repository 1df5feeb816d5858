// The CUDA kernels of deformable convolution as functions of plain arrays, compiled for the host.
#include "cuda_on_host.h"

#include "cuda/deform_conv.cuh"

using namespace dcn_det;

namespace {

Planes<const double> planes(const double* data, const DeformConvShape& shape, int64_t channels) {
  return {data, channels * shape.out_cells(), shape.out_cells(), 1};
}

Planes<double> planes(double* data, const DeformConvShape& shape, int64_t channels) {
  return {data, channels * shape.out_cells(), shape.out_cells(), 1};
}

DeformConvShape shape_of(const int64_t* s) {
  const auto at = [&](int i) { return static_cast<int>(s[i]); };
  return {s[0],  at(1),  at(2),  at(3),  at(4),  at(5),  at(6),  at(7),  at(8),
          at(9), at(10), at(11), at(12), at(13), at(14), at(15), at(16), static_cast<Border>(s[17])};
}

Columns<double> columns_of(const DeformConvShape& shape, double* data, int64_t rows) {
  return {data, rows * shape.taps() * shape.group_channels(), shape.groups, shape.group_channels(),
          shape.taps()};
}

}  // namespace

extern "C" void fill(const int64_t* s, const double* features, const double* offset, const double* mask,
                     double* columns, int64_t first, int64_t rows) {
  const DeformConvShape shape = shape_of(s);
  const int64_t samples = static_cast<int64_t>(shape.offset_groups) * shape.taps();
  launch(3, 4, fill_columns_kernel<double, double>, shape, features, planes(offset, shape, 2 * samples),
         planes(mask, shape, samples), columns_of(shape, columns, rows), first, rows);
}

extern "C" void sweep(const int64_t* s, const double* features, const double* offset, const double* mask,
                      double* columns, double* grad_features, double* grad_offset, double* grad_mask,
                      bool keep_columns, int64_t first, int64_t rows) {
  const DeformConvShape shape = shape_of(s);
  const int64_t samples = static_cast<int64_t>(shape.offset_groups) * shape.taps();
  launch(3, 4, sweep_kernel<double, double>, shape, features, planes(offset, shape, 2 * samples),
         planes(mask, shape, samples), columns_of(shape, columns, rows), grad_features,
         planes(grad_offset, shape, 2 * samples), planes(grad_mask, shape, samples), keep_columns, first,
         rows);
}
