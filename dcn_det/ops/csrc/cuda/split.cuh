// Products of float32 matrices by units that multiply bfloat16 numbers and add in float32. A number is the
// sum of three bfloat16 parts of 8 bits each, and a product is the sum of the six products of parts that
// matter in float32: 1x1, 2x1, 1x2, 3x1, 2x2 and 1x3, where part 1 is the largest. The others are below 2^-24
// of it. Parts side by side, times parts on top of each other, are one product of matrices.
//
// These units cut off sums instead of rounding them, so that every addition to a sum loses about as much as
// it did in the same direction. Small products are therefore added before large ones, and long sums of large
// products are added up in chunks. Free of torch.
#pragma once

#include "cuda/lanes.cuh"

namespace dcn_det {

constexpr int kParts = 3;
constexpr int64_t kChunk = 1152;  // products of the largest parts per sum

// Which part each copy of a matrix holds, one digit per copy; 0 is the largest.
template <int copies, unsigned digits>
struct Copies {
  static constexpr int count = copies;
  DCN_DET_INLINE static constexpr int part(int copy) { return digits >> 4 * (copies - 1 - copy) & 15; }
};
using SixLeft = Copies<6, 0x210100>;
using SixRight = Copies<6, 0x012010>;
// Factors of the parts (3 2), (2 1) and 1 of a left matrix; the first copy is also that of the chunks.
using ChunkedRight = Copies<5, 0x00112>;

// Values that are not finite have parts that are not finite, too.
template <typename P>
__device__ __forceinline__ void split(float value, P (&parts)[kParts]) {
#pragma unroll
  for (int i = 0; i < kParts; ++i) {
    parts[i] = static_cast<P>(value);
    value -= static_cast<float>(parts[i]);
  }
}

// copies[row][copy][column] = the copy's part of in[row][column].
template <typename P, typename Kind>
__global__ void __launch_bounds__(kThreads)
    split_kernel(const float* __restrict__ in, P* __restrict__ copies, int64_t rows, int64_t columns) {
  for (int64_t i = first_thread(); i < rows * columns; i += all_threads()) {
    const Division at = divide(i, columns);
    P parts[kParts];
    split(in[i], parts);
    P* const out = copies + at.quotient * Kind::count * columns + at.remainder;
#pragma unroll
    for (int k = 0; k < Kind::count; ++k) out[k * columns] = parts[Kind::part(k)];
  }
}

// out[row][column] = the sum of `count` matrices (rows, columns), plus bias[column] if there is a bias and
// what `out` holds already if `more`. The last matrices are added first.
static __global__ void __launch_bounds__(kThreads)
    add_products_kernel(const float* __restrict__ products, int count, int64_t rows, int64_t columns,
                        const float* bias, bool more, float* out, int64_t out_stride) {
  for (int64_t i = first_thread(); i < rows * columns; i += all_threads()) {
    const Division at = divide(i, columns);
    float sum = 0;
    for (int k = count - 1; k >= 0; --k) sum += products[k * rows * columns + i];
    float* const place = out + at.quotient * out_stride + at.remainder;
    if (bias != nullptr) sum += bias[at.remainder];
    *place = more ? *place + sum : sum;
  }
}

}  // namespace dcn_det
