// Non-maximum suppression on CUDA, without a look from the host: keys to sort by, a triangle of bits that
// tell who suppresses whom, and one block that sweeps it in the order of the scores. Every loop strides by
// the block's size and meets at __syncthreads(), so that a host compiler can run the kernels with blocks of
// one thread. Free of torch.
#pragma once

#include "common/nms.h"
#include "cuda/grid.cuh"

namespace dcn_det {

constexpr int kWordBits = 64;

__device__ __forceinline__ int count_bits(uint64_t bits) {
#if defined(__CUDACC__)
  return __popcll(bits);
#else
  return __builtin_popcountll(bits);
#endif
}

// The position of the lowest bit that is set, of at least one.
__device__ __forceinline__ int lowest_bit(uint64_t bits) {
#if defined(__CUDACC__)
  return __ffsll(static_cast<long long>(bits)) - 1;
#else
  return __builtin_ctzll(bits);
#endif
}

// What to sort by, decreasing. -0 becomes 0, and boxes that are no candidates go to the end, among those of
// the least score; the masks tell them apart.
template <typename A>
__global__ void nms_keys_kernel(int64_t size, const A* boxes, const A* scores, A* keys) {
  for (int64_t i = first_thread(); i < size; i += all_threads())
    keys[i] = is_candidate(boxes + i * 4, scores[i]) ? scores[i] + A(0) : -INFINITY;
}

// masks[i * words + w]: the boxes of word w that box i suppresses, all in sorted order, for w from i's own
// word on. A box marks itself when it is no candidate. A block works on a pair of words.
template <typename A>
__global__ void nms_masks_kernel(int64_t size, int64_t words, const A* boxes, const A* scores,
                                 const int64_t* labels, const int64_t* order, A threshold, uint64_t* masks) {
  __shared__ Box<A> column_boxes[kWordBits];
  __shared__ int64_t column_labels[kWordBits];
  const int64_t pairs = words * (words + 1) / 2;
  for (int64_t pair = blockIdx.x; pair < pairs; pair += gridDim.x) {
    // Pairs are numbered (0, 0), (0, 1), (1, 1), (0, 2), ...: row word, column word.
    int64_t column_word = static_cast<int64_t>((sqrt(8.0 * static_cast<double>(pair) + 1.0) - 1.0) / 2.0);
    while (column_word * (column_word + 1) / 2 > pair) --column_word;
    while ((column_word + 1) * (column_word + 2) / 2 <= pair) ++column_word;
    const int64_t row_word = pair - column_word * (column_word + 1) / 2;
    const int64_t first = column_word * kWordBits;
    const int columns = static_cast<int>(size - first < kWordBits ? size - first : kWordBits);
    for (int i = threadIdx.x; i < columns; i += blockDim.x) {
      column_boxes[i] = Box<A>::read(boxes + order[first + i] * 4);
      column_labels[i] = labels == nullptr ? 0 : labels[order[first + i]];
    }
    __syncthreads();
    for (int row = threadIdx.x; row < kWordBits; row += blockDim.x) {
      const int64_t at = row_word * kWordBits + row;
      if (at >= size) continue;
      const int64_t original = order[at];
      const Box<A> box = Box<A>::read(boxes + original * 4);
      const int64_t label = labels == nullptr ? 0 : labels[original];
      uint64_t bits = 0;
      for (int i = row_word == column_word ? row + 1 : 0; i < columns; ++i)
        if (column_labels[i] == label && suppresses(column_boxes[i], box, threshold))
          bits |= uint64_t(1) << i;
      if (row_word == column_word && !is_candidate(boxes + original * 4, scores[original]))
        bits |= uint64_t(1) << row;
      masks[at * words + column_word] = bits;
    }
    __syncthreads();
  }
}

// One block. `removed` holds a zero for each word. Writes the original indices of the kept boxes to `kept`,
// at most max_keep, and their number to `count`.
__global__ void nms_sweep_kernel(int64_t size, int64_t words, const uint64_t* masks, const int64_t* order,
                                 int64_t max_keep, uint64_t* removed, int64_t* kept, int64_t* count) {
  __shared__ uint64_t diagonal[kWordBits];
  __shared__ uint64_t kept_bits;
  int64_t total = 0;
  for (int64_t word = 0; word < words && total < max_keep; ++word) {
    const int64_t first = word * kWordBits;
    for (int i = threadIdx.x; i < kWordBits; i += blockDim.x)
      diagonal[i] = first + i < size ? masks[(first + i) * words + word] : uint64_t(1) << i;
    __syncthreads();
    if (threadIdx.x == 0) {
      uint64_t gone = removed[word], found = 0;
      int64_t room = max_keep - total;
      for (int i = 0; i < kWordBits && room > 0; ++i) {
        if (((gone | diagonal[i]) >> i & 1) != 0) continue;
        found |= uint64_t(1) << i;
        gone |= diagonal[i];
        --room;
      }
      kept_bits = found;
    }
    __syncthreads();
    const uint64_t found = kept_bits;
    for (int i = threadIdx.x; i < kWordBits; i += blockDim.x)
      if ((found >> i & 1) != 0)
        kept[total + count_bits(found & ((uint64_t(1) << i) - 1))] = order[first + i];
    for (int64_t later = word + 1 + threadIdx.x; later < words; later += blockDim.x) {
      uint64_t gone = removed[later];
      for (uint64_t left = found; left != 0; left &= left - 1)
        gone |= masks[(first + lowest_bit(left)) * words + later];
      removed[later] = gone;
    }
    total += count_bits(found);
    __syncthreads();
  }
  if (threadIdx.x == 0) *count = total;
}

}  // namespace dcn_det
