// Kernels of the deformable convolution, launched as in deform_conv.cu.
#include "arguments.h"

#include "cuda/deform_conv.cuh"
#include "cuda/transpose.cuh"

using namespace dcn_det;

namespace {

DeformConvShape shape_of(const int64_t* s) {
  const auto at = [&](int i) { return static_cast<int>(s[i]); };
  return {s[0],  at(1),  at(2),  at(3),  at(4),  at(5),  at(6),  at(7),  at(8),
          at(9), at(10), at(11), at(12), at(13), at(14), at(15), at(16), static_cast<Border>(s[17])};
}

template <typename A>
Planes<A> planes_of(void* data, const int64_t* strides) {
  if (data == nullptr) return {nullptr, 0, 0, 0};
  return {static_cast<A*>(data), strides[0], strides[1], strides[2]};
}

template <typename T>
Columns<T> columns_of(const DeformConvShape& shape, void* data, int64_t capacity) {
  return {static_cast<T*>(data), capacity * shape.taps() * shape.group_channels(), shape.groups,
          shape.group_channels(), shape.taps()};
}

// Calls body.operator()<T, N>(lanes), with the widest accesses that the sizes allow, or single elements.
template <typename Body>
void dispatch_width(int64_t dtype, const DeformConvShape& shape, bool wide, const Body& body) {
  dispatch(dtype, [&]<typename T>() {
    constexpr int most = kAccessBytes / sizeof(T);
    wide = wide && shape.offset_group_channels() % most == 0 && shape.group_channels() % most == 0;
    if (wide) {
      body.template operator()<T, most>(lanes_for(shape.offset_group_channels(), most));
    } else {
      body.template operator()<T, 1>(lanes_for(shape.offset_group_channels(), 1));
    }
  });
}

}  // namespace

extern "C" void deform_conv_fill(int64_t dtype, const int64_t* s, int64_t wide, int64_t blocks,
                                 void* features, void* offset, const int64_t* offset_strides, void* mask,
                                 const int64_t* mask_strides, void* columns, int64_t capacity, int64_t first,
                                 int64_t rows) {
  const DeformConvShape shape = shape_of(s);
  dispatch_width(dtype, shape, wide, [&]<typename T, int N>(int lanes) {
    using A = accumulate_t<T>;
    cuda_on_host::launch({blocks_of(blocks, batch_count(shape, rows) * kWarp)}, kThreads,
                         fill_columns_kernel<T, A, N>, shape, static_cast<const T*>(features),
                         planes_of<const A>(offset, offset_strides), planes_of<const A>(mask, mask_strides),
                         columns_of<T>(shape, columns, capacity), first, rows, lanes);
  });
}

// Computes the gradients of features, offset and mask, except those whose pointer is null, from the gradients
// of all columns, in tiles of `capacity` rows, which the columns replace.
extern "C" void deform_conv_sweep(int64_t dtype, const int64_t* s, int64_t wide, int64_t blocks,
                                  int64_t deterministic, void* features, void* offset,
                                  const int64_t* offset_strides, void* mask, const int64_t* mask_strides,
                                  void* grad_rows, void* matrices, void* columns, int64_t capacity,
                                  void* grad_features, void* grad_offset, void* grad_mask,
                                  int64_t keep_columns) {
  const DeformConvShape shape = shape_of(s);
  dispatch(dtype, [&]<typename Element>() {
    using A = accumulate_t<Element>;
    const auto run = [&](const auto& sums) {
      dispatch_width(dtype, shape, wide, [&]<typename T, int N>(int lanes) {
        if constexpr (std::is_same_v<T, Element>) {
          const int64_t tile = capacity * shape.taps() * shape.channels;
          for (int64_t first = 0; first < shape.positions(); first += capacity) {
            const int64_t left = shape.positions() - first, rows = left < capacity ? left : capacity;
            cuda_on_host::launch(
                {blocks_of(blocks, batch_count(shape, rows) * kWarp)}, kThreads,
                sweep_kernel<T, A, N, std::decay_t<decltype(sums)>>, shape, static_cast<const T*>(features),
                planes_of<const A>(offset, offset_strides), planes_of<const A>(mask, mask_strides),
                columns_of<T>(shape, static_cast<T*>(columns) + first / capacity * tile, capacity), sums,
                planes_of<A>(grad_offset, offset_strides), planes_of<A>(grad_mask, mask_strides),
                keep_columns != 0, first, rows, lanes);
          }
        }
      });
    };
    if (grad_features == nullptr) return run(FloatingSums<A>{nullptr});
    const double terms =
        static_cast<double>(shape.out_cells()) * shape.taps() * (shape.out_channels / shape.groups);
    std::vector<Measure> factors{
        largest_of<Element>(grad_rows, shape.positions() * shape.out_channels),
        largest_of<Element>(matrices, int64_t(shape.out_channels) * shape.taps() * shape.group_channels())};
    if (mask != nullptr)
      factors.push_back(largest_of<A>(mask, shape.positions() * shape.offset_groups * shape.taps()));
    add_up<A>(grad_features, shape.batch * shape.cells() * shape.channels, deterministic != 0, terms, factors,
              run);
  });
}

// Writes nothing if elements have no integer type of their size.
extern "C" void transpose(int64_t bytes, int64_t blocks, const void* in, void* out, int64_t batch,
                          int64_t rows, int64_t columns) {
  const int64_t threads = transpose_blocks(batch, rows, columns) * kThreads;
  dispatch_size(bytes, [&]<typename T>() {
    cuda_on_host::launch({blocks_of(blocks, threads)}, kThreads, transpose_kernel<T>,
                         static_cast<const T*>(in), static_cast<T*>(out), batch, rows, columns);
  });
}
