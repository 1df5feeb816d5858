// Runs the CUDA kernels of RoI pooling on the host: one block of one thread, which strides over all the work.
#include <cmath>
#include <cstdint>

#define __global__
#define __device__
#define __forceinline__ inline

namespace {

struct Index {
  unsigned x;
};
constexpr Index blockIdx{0}, threadIdx{0}, blockDim{1}, gridDim{1};

template <typename T>
void atomicAdd(T* target, T value) {
  *target += value;
}

}  // namespace

#include "cuda/deform_psroi_pool.cuh"
#include "cuda/psroi_pool.cuh"
#include "cuda/roi_pool.cuh"

using namespace dcn_det;

namespace {

// images, rois, output_dim, height, width, group, pooled, classes, part, samples
DeformPsroiSizes deform_sizes(const int64_t* s) {
  DeformPsroiSizes sizes{
      {s[0], s[1], s[2], int(s[3]), int(s[4]), int(s[5]), int(s[6])}, s[7], int(s[8]), int(s[9])};
  return sizes;
}

}  // namespace

extern "C" {

void deform_psroi_pool(const int64_t* s, double scale, double std, const double* input, const double* rois,
                       const double* trans, double* output) {
  deform_psroi_pool_kernel<double, double>(deform_sizes(s), {rois, trans, scale, std}, input, output);
}

void deform_psroi_pool_backward(const int64_t* s, double scale, double std, const double* grad,
                                const double* input, const double* rois, const double* trans,
                                double* grad_input, double* grad_trans) {
  const auto sizes = deform_sizes(s);
  const DeformPsroiRegions<double> regions{rois, trans, scale, std};
  deform_psroi_pool_grad_input_kernel<double, double>(sizes, regions, grad, grad_input);
  if (trans != nullptr)
    deform_psroi_pool_grad_trans_kernel<double, double>(sizes, regions, input, grad, grad_trans, 1);
}

void psroi_pool(const int64_t* s, double scale, const double* input, const double* rois, const double* grad,
                double* output, double* grad_input) {
  const auto sizes = deform_sizes(s);
  psroi_pool_kernel<double, double>(sizes, input, rois, scale, output);
  psroi_pool_grad_input_kernel<double, double>(sizes, grad, rois, scale, grad_input);
}

void roi_pool(const int64_t* s, double scale, const double* input, const double* rois, const double* grad,
              double* output, int32_t* argmax, double* grad_input) {
  const RoiPoolSizes sizes{s[0], s[1], s[2], int(s[3]), int(s[4]), int(s[6])};
  roi_pool_kernel<double, double>(sizes, input, rois, scale, output, argmax);
  roi_pool_grad_input_kernel<double, double>(sizes, grad, rois, argmax, grad_input);
}
}
