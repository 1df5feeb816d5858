// Loops of the deformable convolution over samples, on the CPU. Channels are contiguous, so that the
// innermost loops, over channels, access memory in order. Free of torch's tensors.
#pragma once

#include <algorithm>

#include "common/deform_conv_shape.h"
#include "cpu/vectorize.h"

namespace dcn_det {

// Features of the four corners, from a channel on.
template <typename T>
struct Corners {
  T* at[4];

  template <typename A>
  DCN_DET_INLINE Corners(T* image, const Sample<A>& sample, const DeformConvShape& shape, int channel) {
    for (int i = 0; i < 4; ++i) at[i] = image + sample.cell(i, shape.width) * shape.channels + channel;
  }

  // Prefetches the first cache lines; the hardware prefetches the following ones.
  DCN_DET_INLINE void prefetch() const {
    for (int i = 0; i < 4; ++i) {
      for (int byte = 0; byte < 256; byte += 64)
        __builtin_prefetch(reinterpret_cast<const char*>(at[i]) + byte);
    }
  }
};

template <typename T, typename A>
DCN_DET_INLINE void interpolate(T* out, const Corners<const T>& corner, const Sample<A>& sample, int count) {
  const A w0 = sample.modulation * sample.weight(0), w1 = sample.modulation * sample.weight(1);
  const A w2 = sample.modulation * sample.weight(2), w3 = sample.modulation * sample.weight(3);
  const T *a = corner.at[0], *b = corner.at[1], *c = corner.at[2], *d = corner.at[3];
#pragma omp simd
  for (int i = 0; i < count; ++i) {
    out[i] = store_as<T>(w0 * load_as<A>(a[i]) + w1 * load_as<A>(b[i]) + w2 * load_as<A>(c[i]) +
                         w3 * load_as<A>(d[i]));
  }
}

// Columns for the output positions [begin, end) of the tile that starts at position `first`.
struct FillColumns {
  template <typename T, typename A>
  DCN_DET_INLINE static void run(const DeformConvShape& shape, const T* features,
                                 const Planes<const A>& offset, const Planes<const A>& mask,
                                 const Columns<T>& columns, int64_t first, int64_t begin, int64_t end) {
    const int group_channels = shape.group_channels(), offset_channels = shape.offset_group_channels();
    for (int64_t position = begin; position < end; ++position) {
      const auto [image, cell] = divide(position, shape.out_cells());
      const T* map = features + image * shape.cells() * shape.channels;
      const int samples = shape.taps() * shape.offset_groups;
      Sample<A> ahead = sample_at(shape, offset, mask, image, cell, 0, 0);
      for (int i = 0; i < samples; ++i) {
        const Sample<A> sample = ahead;
        const int tap = i / shape.offset_groups, group = i % shape.offset_groups;
        if (i + 1 < samples) {
          const int next_tap = (i + 1) / shape.offset_groups, next_group = (i + 1) % shape.offset_groups;
          ahead = sample_at(shape, offset, mask, image, cell, next_group, next_tap);
          if (ahead.inside) Corners<const T>(map, ahead, shape, next_group * offset_channels).prefetch();
        }
        const int stop = (group + 1) * offset_channels;
        // A run of channels that are also contiguous in the columns.
        for (int channel = group * offset_channels, next; channel < stop; channel = next) {
          next = std::min((channel / group_channels + 1) * group_channels, stop);
          T* out = columns.at(position - first, tap, channel);
          if (sample.inside) {
            interpolate(out, Corners<const T>(map, sample, shape, channel), sample, next - channel);
          } else {
            std::fill(out, out + (next - channel), T(0.f));
          }
        }
      }
    }
  }
};

// Samples of the output positions [begin, end): samples[position - first][offset group][tap].
template <typename A>
void locate_samples(const DeformConvShape& shape, const Planes<const A>& offset, const Planes<const A>& mask,
                    Sample<A>* samples, int64_t first, int64_t begin, int64_t end) {
  for (int64_t position = begin; position < end; ++position) {
    const auto [image, cell] = divide(position, shape.out_cells());
    Sample<A>* out = samples + (position - first) * shape.offset_groups * shape.taps();
    for (int group = 0; group < shape.offset_groups; ++group) {
      for (int tap = 0; tap < shape.taps(); ++tap) {
        *out++ = sample_at(shape, offset, mask, image, cell, group, tap);
      }
    }
  }
}

// Channels [begin, end) of the map, all in one group and one offset group.
struct ChannelBlock {
  int begin, end, group, offset_group;
  int size() const { return end - begin; }
};

// A block's share of one sample's gradients.
template <typename A>
struct SampleGrad {
  A y, x, modulation;
};

template <typename T, typename A>
DCN_DET_INLINE SampleGrad<A> sample_grad(const T* grad, const Corners<const T>& corner,
                                         const Sample<A>& sample, int count) {
  const T *a = corner.at[0], *b = corner.at[1], *c = corner.at[2], *d = corner.at[3];
  A s0 = 0, s1 = 0, s2 = 0, s3 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
  for (int i = 0; i < count; ++i) {
    const A g = load_as<A>(grad[i]);
    s0 += g * load_as<A>(a[i]);
    s1 += g * load_as<A>(b[i]);
    s2 += g * load_as<A>(c[i]);
    s3 += g * load_as<A>(d[i]);
  }
  const A sums[4] = {s0, s1, s2, s3};
  SampleGrad<A> result{0, 0, 0};
  for (int i = 0; i < 4; ++i) {
    result.y += sample.slope_y(i) * sums[i];
    result.x += sample.slope_x(i) * sums[i];
    result.modulation += sample.weight(i) * sums[i];
  }
  result.y *= sample.modulation;
  result.x *= sample.modulation;
  return result;
}

template <typename T, typename A>
DCN_DET_INLINE void scatter(const T* grad, const Corners<A>& corner, const Sample<A>& sample, int count) {
  for (int k = 0; k < 4; ++k) {
    const A weight = sample.modulation * sample.weight(k);
    if (weight == A(0)) continue;
    A* out = corner.at[k];
#pragma omp simd
    for (int i = 0; i < count; ++i) out[i] += weight * load_as<A>(grad[i]);
  }
}

// Gradients of a block's samples at the output positions first, first + 1, ..., whose samples start at
// `samples`. `columns`, (rows, taps, channels of the block), holds the gradients of the columns; with
// `keep_columns` they are replaced by the columns. grad_features and sample_grads, (rows, taps), may be null.
struct SweepBlock {
  template <typename T, typename A>
  DCN_DET_INLINE static void run(const DeformConvShape& shape, const ChannelBlock& block, const T* features,
                                 const Sample<A>* samples, T* columns, A* grad_features,
                                 SampleGrad<A>* sample_grads, bool keep_columns, int64_t first,
                                 int64_t rows) {
    const int count = block.end - block.begin, taps = shape.taps();
    const int64_t map_size = shape.cells() * shape.channels;
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t map = (first + row) / shape.out_cells() * map_size;
      const Sample<A>* sample = samples + (row * shape.offset_groups + block.offset_group) * taps;
      for (int tap = 0; tap < taps; ++tap, ++sample, columns += count) {
        if (!sample->inside) {
          if (sample_grads != nullptr) sample_grads[row * taps + tap] = {0, 0, 0};
          if (keep_columns) std::fill(columns, columns + count, T(0.f));
          continue;
        }
        const Corners<const T> corner(features + map, *sample, shape, block.begin);
        if (sample_grads != nullptr) {
          sample_grads[row * taps + tap] = sample_grad(columns, corner, *sample, count);
        }
        if (grad_features != nullptr) {
          scatter(columns, Corners<A>(grad_features + map, *sample, shape, block.begin), *sample, count);
        }
        if (keep_columns) interpolate(columns, corner, *sample, count);
      }
    }
  }
};

// sum += product, element by element.
struct AddTo {
  template <typename T, typename A>
  DCN_DET_INLINE static void run(A* sum, const T* product, int64_t count) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) sum[i] += load_as<A>(product[i]);
  }
};

}  // namespace dcn_det
