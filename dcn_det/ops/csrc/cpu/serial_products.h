// Matrix products on the calling thread.
#pragma once

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include <algorithm>

#include "common/tensor_ops.h"

// Null if PyTorch was built without MKL or OpenMP.
extern "C" int MKL_Set_Num_Threads_Local(int) __attribute__((weak));
extern "C" int omp_get_max_threads() __attribute__((weak));
extern "C" void omp_set_num_threads(int) __attribute__((weak));

namespace dcn_det {

// During its lifetime, products in a parallel region run on this thread only: oneDNN respects the region, MKL
// must be told. Products then have the same bits for any number of threads, unlike products spread over
// threads. As oneDNN still divides a product into blocks by OpenMP's number of threads, that number is also
// set to 1.
class SerialProducts {
 public:
  SerialProducts() {
    torch::stable::get_num_threads();  // its first call in a thread also sets MKL's number of threads
    if (MKL_Set_Num_Threads_Local != nullptr) before_ = MKL_Set_Num_Threads_Local(1);
    if (omp_set_num_threads != nullptr && omp_get_max_threads != nullptr) {
      openmp_before_ = omp_get_max_threads();
      omp_set_num_threads(1);
    }
  }
  ~SerialProducts() {
    if (MKL_Set_Num_Threads_Local != nullptr) MKL_Set_Num_Threads_Local(before_);
    if (openmp_before_ > 0) omp_set_num_threads(openmp_before_);
  }
  SerialProducts(const SerialProducts&) = delete;
  SerialProducts& operator=(const SerialProducts&) = delete;

 private:
  int before_ = 0, openmp_before_ = 0;
};

// Calls body(begin, end) in parallel for ranges that cover [0, count). There are at least two ranges, because
// parallel_for runs a single one outside a parallel region.
template <typename Body>
void parallel_with_products(int64_t count, const Body& body) {
  torch::stable::parallel_for(0, std::max<int64_t>(count, 2), 1, [&](int64_t begin, int64_t end) {
    const SerialProducts serial;
    if (begin < count) body(begin, std::min(end, count));
  });
}

// out = a b. Calls kernels directly, because PyTorch's worker threads lack the caller's dispatch state.
inline void multiply(const Tensor& out, const Tensor& a, const Tensor& b) {
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(out.get(), a.get(), b.get()));
}

// out = self + a b
inline void multiply_add(const Tensor& out, const Tensor& self, const Tensor& a, const Tensor& b) {
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(out.get(), self.get(), a.get(), b.get(), 1.0, 1.0));
}

}  // namespace dcn_det
