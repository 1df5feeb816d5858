// Large memory pages, where the system provides them on request: a page fault per 4 KiB of a new tensor costs
// more than writing to it.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdint>

#include "common/tensor_ops.h"

namespace dcn_det {

// Returns the tensor, which must not have been written to yet.
inline Tensor in_large_pages(const Tensor& fresh) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = 2 << 20;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(fresh.mutable_data_ptr());
  const uintptr_t end = begin + static_cast<uintptr_t>(fresh.numel()) * fresh.element_size();
  const uintptr_t first = (begin + kPage - 1) / kPage * kPage, last = end / kPage * kPage;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // a hint; may fail
#endif
  return fresh;
}

}  // namespace dcn_det
