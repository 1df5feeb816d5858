// Kernels of RoI pooling, launched as in their .cu files.
#include "arguments.h"

#include "cuda/deform_psroi_pool.cuh"
#include "cuda/deform_psroi_pool_last.cuh"
#include "cuda/psroi_pool.cuh"
#include "cuda/roi_align.cuh"
#include "cuda/roi_pool.cuh"

using namespace dcn_det;

namespace {

// images, rois, output_dim, height, width, group, pooled, classes, part, samples
DeformPsroiSizes sizes_of(const int64_t* s) {
  DeformPsroiSizes sizes{};
  sizes.images = s[0];
  sizes.rois = s[1];
  sizes.output_dim = s[2];
  sizes.height = static_cast<int>(s[3]);
  sizes.width = static_cast<int>(s[4]);
  sizes.group = static_cast<int>(s[5]);
  sizes.pooled = static_cast<int>(s[6]);
  sizes.classes = s[7];
  sizes.part = static_cast<int>(s[8]);
  sizes.samples = static_cast<int>(s[9]);
  return sizes;
}

template <typename A>
DeformPsroiRegions<A> regions_of(const void* rois, const void* offset, double scale, double std) {
  return {static_cast<const A*>(rois), static_cast<const A*>(offset), static_cast<A>(scale),
          static_cast<A>(std)};
}

int64_t outputs_of(const PsroiSizes& sizes) { return sizes.rois * sizes.output_dim * sizes.bins(); }

int64_t cells_of(const PsroiSizes& sizes) {
  return sizes.images * sizes.input_channels() * sizes.height * sizes.width;
}

double terms_of(const PsroiSizes& sizes) { return static_cast<double>(sizes.rois) * sizes.bins(); }

// Calls body.operator()<T, N>(lanes).
template <typename Body>
void dispatch_last(int64_t dtype, const DeformPsroiSizes& sizes, const Body& body) {
  dispatch(dtype, [&]<typename T>() {
    constexpr int most = kAccessBytes / sizeof(T);
    const int channels = static_cast<int>(sizes.channels_per_class());
    if (channels % most == 0) {
      body.template operator()<T, most>(lanes_for(channels, most));
    } else {
      body.template operator()<T, 1>(lanes_for(channels, 1));
    }
  });
}

}  // namespace

extern "C" void deform_psroi_pool_last(int64_t dtype, const int64_t* s, int64_t blocks, double scale,
                                       double std, const void* features, const void* rois, const void* offset,
                                       void* output) {
  const auto sizes = sizes_of(s);
  dispatch_last(dtype, sizes, [&]<typename T, int N>(int lanes) {
    using A = accumulate_t<T>;
    cuda_on_host::launch({blocks_of(blocks, sizes.rois * sizes.classes * sizes.bins() * lanes)}, kThreads,
                         deform_psroi_pool_last_kernel<T, A, N>, sizes,
                         regions_of<A>(rois, offset, scale, std), static_cast<const T*>(features),
                         static_cast<T*>(output), lanes);
  });
}

// Computes the gradients whose pointer is not null.
extern "C" void deform_psroi_pool_last_backward(int64_t dtype, const int64_t* s, int64_t blocks,
                                                int64_t deterministic, double scale, double std,
                                                const void* grad, const void* features, const void* rois,
                                                const void* offset, void* grad_features, void* grad_offset) {
  const auto sizes = sizes_of(s);
  dispatch_last(dtype, sizes, [&]<typename T, int N>(int lanes) {
    using A = accumulate_t<T>;
    const auto run = [&](const auto& sums) {
      cuda_on_host::launch({blocks_of(blocks, sizes.rois * sizes.classes * sizes.offset_plane() * lanes)},
                           kThreads,
                           deform_psroi_pool_last_backward_kernel<T, A, N, std::decay_t<decltype(sums)>>,
                           sizes, regions_of<A>(rois, offset, scale, std), static_cast<const T*>(features),
                           static_cast<const T*>(grad), sums, static_cast<A*>(grad_offset), lanes);
    };
    if (grad_features == nullptr) return run(FloatingSums<A>{nullptr});
    add_up<A>(grad_features, cells_of(sizes), deterministic != 0, terms_of(sizes),
              {largest_of<T>(grad, outputs_of(sizes))}, run);
  });
}

extern "C" void deform_psroi_pool(int64_t dtype, const int64_t* s, int64_t blocks, double scale, double std,
                                  const void* input, const void* rois, const void* offset, void* output) {
  const auto sizes = sizes_of(s);
  dispatch(dtype, [&]<typename T>() {
    using A = accumulate_t<T>;
    cuda_on_host::launch({blocks_of(blocks, outputs_of(sizes))}, kThreads, deform_psroi_pool_kernel<T, A>,
                         sizes, regions_of<A>(rois, offset, scale, std), static_cast<const T*>(input),
                         static_cast<T*>(output));
  });
}

// Computes the gradients whose pointer is not null; that of the offsets only if every output owns some.
extern "C" void deform_psroi_pool_backward(int64_t dtype, const int64_t* s, int64_t blocks,
                                           int64_t deterministic, double scale, double std, const void* grad,
                                           const void* input, const void* rois, const void* offset,
                                           void* grad_input, void* grad_offset) {
  const auto sizes = sizes_of(s);
  if (grad_offset != nullptr && !owns_offsets(sizes)) cuda_on_host::fail("outputs share offsets");
  dispatch(dtype, [&]<typename T>() {
    using A = accumulate_t<T>;
    const auto run = [&](const auto& sums) {
      cuda_on_host::launch({blocks_of(blocks, outputs_of(sizes))}, kThreads,
                           deform_psroi_pool_backward_kernel<T, A, std::decay_t<decltype(sums)>>, sizes,
                           regions_of<A>(rois, offset, scale, std), static_cast<const T*>(input),
                           static_cast<const T*>(grad), sums, static_cast<A*>(grad_offset));
    };
    if (grad_input == nullptr) return run(FloatingSums<A>{nullptr});
    add_up<A>(grad_input, cells_of(sizes), deterministic != 0, terms_of(sizes),
              {largest_of<T>(grad, outputs_of(sizes))}, run);
  });
}

extern "C" void deform_psroi_pool_grad_offset(int64_t dtype, const int64_t* s, int64_t blocks, int64_t lanes,
                                              double scale, double std, const void* grad, const void* input,
                                              const void* rois, const void* offset, void* grad_offset) {
  const auto sizes = sizes_of(s);
  const int64_t threads = sizes.rois * sizes.classes * sizes.offset_plane() * lanes;
  dispatch(dtype, [&]<typename T>() {
    using A = accumulate_t<T>;
    cuda_on_host::launch({blocks_of(blocks, threads)}, kThreads, deform_psroi_pool_grad_offset_kernel<T, A>,
                         sizes, regions_of<A>(rois, offset, scale, std), static_cast<const T*>(input),
                         static_cast<const T*>(grad), static_cast<A*>(grad_offset), static_cast<int>(lanes));
  });
}

extern "C" void psroi_pool(int64_t dtype, const int64_t* s, int64_t blocks, double scale, const void* input,
                           const void* rois, void* output) {
  const PsroiSizes sizes = sizes_of(s);
  dispatch(dtype, [&]<typename T>() {
    using A = accumulate_t<T>;
    cuda_on_host::launch({blocks_of(blocks, outputs_of(sizes))}, kThreads, psroi_pool_kernel<T, A>, sizes,
                         static_cast<const T*>(input), static_cast<const A*>(rois), static_cast<A>(scale),
                         static_cast<T*>(output));
  });
}

extern "C" void psroi_pool_grad_input(int64_t dtype, const int64_t* s, int64_t blocks, int64_t deterministic,
                                      double scale, const void* grad, const void* rois, void* grad_input) {
  const PsroiSizes sizes = sizes_of(s);
  dispatch(dtype, [&]<typename T>() {
    using A = accumulate_t<T>;
    add_up<A>(grad_input, cells_of(sizes), deterministic != 0, terms_of(sizes),
              {largest_of<T>(grad, outputs_of(sizes))}, [&](const auto& sums) {
                cuda_on_host::launch({blocks_of(blocks, outputs_of(sizes))}, kThreads,
                                     psroi_pool_grad_input_kernel<T, A, std::decay_t<decltype(sums)>>, sizes,
                                     static_cast<const T*>(grad), static_cast<const A*>(rois),
                                     static_cast<A>(scale), sums);
              });
  });
}

extern "C" void roi_align(int64_t dtype, const int64_t* s, int64_t blocks, int64_t ratio, int64_t aligned,
                          double scale, const void* input, const void* rois, void* output) {
  const RoiAlignSizes sizes{sizes_of(s), static_cast<int>(ratio), aligned != 0};
  dispatch(dtype, [&]<typename T>() {
    using A = accumulate_t<T>;
    cuda_on_host::launch({blocks_of(blocks, outputs_of(sizes))}, kThreads, roi_align_kernel<T, A>, sizes,
                         static_cast<const T*>(input), static_cast<const A*>(rois), static_cast<A>(scale),
                         static_cast<T*>(output));
  });
}

extern "C" void roi_align_grad_input(int64_t dtype, const int64_t* s, int64_t blocks, int64_t deterministic,
                                     int64_t ratio, int64_t aligned, double scale, const void* grad,
                                     const void* rois, void* grad_input) {
  const RoiAlignSizes sizes{sizes_of(s), static_cast<int>(ratio), aligned != 0};
  const double along_axis = ratio > 0 ? static_cast<double>(ratio) : 4;
  dispatch(dtype, [&]<typename T>() {
    using A = accumulate_t<T>;
    add_up<A>(grad_input, cells_of(sizes), deterministic != 0, terms_of(sizes) * along_axis * along_axis,
              {largest_of<T>(grad, outputs_of(sizes))}, [&](const auto& sums) {
                cuda_on_host::launch({blocks_of(blocks, outputs_of(sizes))}, kThreads,
                                     roi_align_grad_input_kernel<T, A, std::decay_t<decltype(sums)>>, sizes,
                                     static_cast<const T*>(grad), static_cast<const A*>(rois),
                                     static_cast<A>(scale), sums);
              });
  });
}

extern "C" void roi_pool(int64_t dtype, const int64_t* s, int64_t blocks, double scale, const void* input,
                         const void* rois, void* output, int32_t* argmax) {
  const RoiPoolSizes sizes{s[0], s[1], s[2], int(s[3]), int(s[4]), int(s[6])};
  dispatch(dtype, [&]<typename T>() {
    using A = accumulate_t<T>;
    cuda_on_host::launch({blocks_of(blocks, sizes.rois * sizes.channels * sizes.bins())}, kThreads,
                         roi_pool_kernel<T, A>, sizes, static_cast<const T*>(input),
                         static_cast<const A*>(rois), static_cast<A>(scale), static_cast<T*>(output), argmax);
  });
}

extern "C" void roi_pool_grad_input(int64_t dtype, const int64_t* s, int64_t blocks, int64_t deterministic,
                                    const void* grad, const void* rois, const int32_t* argmax,
                                    void* grad_input) {
  const RoiPoolSizes sizes{s[0], s[1], s[2], int(s[3]), int(s[4]), int(s[6])};
  const int64_t outputs = sizes.rois * sizes.channels * sizes.bins();
  dispatch(dtype, [&]<typename T>() {
    using A = accumulate_t<T>;
    add_up<A>(grad_input, sizes.images * sizes.channels * sizes.height * sizes.width, deterministic != 0,
              static_cast<double>(sizes.rois) * sizes.bins(), {largest_of<T>(grad, outputs)},
              [&](const auto& sums) {
                cuda_on_host::launch({blocks_of(blocks, outputs)}, kThreads,
                                     roi_pool_grad_input_kernel<T, A, std::decay_t<decltype(sums)>>, sizes,
                                     static_cast<const T*>(grad), static_cast<const A*>(rois), argmax, sums);
              });
  });
}
