// Matrix products on the thread that asks for them.
#pragma once

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include <algorithm>

#include "common/tensor_ops.h"

// Null where PyTorch was built without MKL or OpenMP.
extern "C" int MKL_Set_Num_Threads_Local(int) __attribute__((weak));
extern "C" int omp_get_max_threads() __attribute__((weak));
extern "C" void omp_set_num_threads(int) __attribute__((weak));

namespace dcn_det {

// While it lives, products in a parallel region run on this thread alone: oneDNN heeds the region, MKL has to
// be told. They then give the same bits for any number of threads, which products spread over threads do not.
// oneDNN yet cuts a product into blocks for as many threads as OpenMP has, hence a number for that, too.
class SerialProducts {
 public:
  SerialProducts() {
    torch::stable::get_num_threads();  // at its first call in a thread, PyTorch sets MKL's number, too
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

// Calls body(begin, end) in parallel for ranges that make up [0, count). Two at least, because parallel_for
// calls the body for a single one outside of any parallel region.
template <typename Body>
void parallel_with_products(int64_t count, const Body& body) {
  torch::stable::parallel_for(0, std::max<int64_t>(count, 2), 1, [&](int64_t begin, int64_t end) {
    const SerialProducts serial;
    if (begin < count) body(begin, std::min(end, count));
  });
}

// out = a b. The kernels are called directly, as PyTorch's threads do not know the caller's dispatch state.
inline void multiply(const Tensor& out, const Tensor& a, const Tensor& b) {
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(out.get(), a.get(), b.get()));
}

// out = self + a b
inline void multiply_add(const Tensor& out, const Tensor& self, const Tensor& a, const Tensor& b) {
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(out.get(), self.get(), a.get(), b.get(), 1.0, 1.0));
}

}  // namespace dcn_det
