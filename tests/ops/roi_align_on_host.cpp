// Runs the CUDA kernels of RoI align on the host.
#include <cmath>
#include <cstdint>

#include "cuda_on_host.h"
//
#include "cuda/roi_align.cuh"

using namespace dcn_det;

// sizes: images, rois, channels, height, width, pooled, sampling_ratio, aligned. grad_input is zero before.
extern "C" void roi_align(const int64_t* s, double scale, const double* input, const double* rois,
                          const double* grad, double* output, double* grad_input) {
  const RoiAlignSizes sizes{{s[0], s[1], s[2], int(s[3]), int(s[4]), 1, int(s[5])}, int(s[6]), s[7] != 0};
  launch(3, 4, roi_align_kernel<double, double>, sizes, input, rois, scale, output);
  launch(3, 4, roi_align_grad_input_kernel<double, double>, sizes, grad, rois, scale, grad_input);
}
