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

// `parts` matrices of a tile side by side, or on top of each other.
template <typename T>
Columns<T> columns_of(const DeformConvShape& shape, void* data, int64_t capacity, int parts = 1,
                      bool side_by_side = false) {
  const int64_t depth = static_cast<int64_t>(shape.taps()) * shape.group_channels();
  return {static_cast<T*>(data), capacity * depth * parts, side_by_side ? depth * parts : depth, shape.groups,
          shape.group_channels()};
}

using Part = torch::headeronly::BFloat16;

SplitColumns<Part> split_columns_of(const DeformConvShape& shape, void* data, int64_t capacity,
                                    bool side_by_side) {
  const int64_t depth = static_cast<int64_t>(shape.taps()) * shape.group_channels();
  return {columns_of<Part>(shape, data, capacity, kParts, side_by_side),
          side_by_side ? depth : capacity * depth};
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

extern "C" void deform_conv_tile_rows(const int64_t* s, int64_t element_bytes, int64_t* rows) {
  *rows = tile_rows_of(shape_of(s), element_bytes);
}

extern "C" void deform_conv_fill(int64_t dtype, const int64_t* s, int64_t wide, int64_t blocks,
                                 void* features, void* offset, const int64_t* offset_strides, void* mask,
                                 const int64_t* mask_strides, void* columns, int64_t capacity, int64_t first,
                                 int64_t rows) {
  const DeformConvShape shape = shape_of(s);
  dispatch_width(dtype, shape, wide, [&]<typename T, int N>(int lanes) {
    using A = accumulate_t<T>;
    cuda_on_host::launch({blocks_of(blocks, batch_count(shape, rows) * kWarp)}, kThreads,
                         fill_columns_kernel<T, A, N, WholeColumns<T>>, shape,
                         static_cast<const T*>(features), planes_of<const A>(offset, offset_strides),
                         planes_of<const A>(mask, mask_strides),
                         WholeColumns<T>{columns_of<T>(shape, columns, capacity)}, first, rows, lanes);
  });
}

extern "C" void deform_conv_split_fill(const int64_t* s, int64_t wide, int64_t blocks, void* features,
                                       void* offset, const int64_t* offset_strides, void* mask,
                                       const int64_t* mask_strides, void* columns, int64_t capacity,
                                       int64_t side_by_side, int64_t first, int64_t rows) {
  const DeformConvShape shape = shape_of(s);
  dispatch_width(0, shape, wide, [&]<typename T, int N>(int lanes) {
    if constexpr (std::is_same_v<T, float>) {
      cuda_on_host::launch({blocks_of(blocks, batch_count(shape, rows) * kWarp)}, kThreads,
                           fill_columns_kernel<float, float, N, SplitColumns<Part>>, shape,
                           static_cast<const float*>(features),
                           planes_of<const float>(offset, offset_strides),
                           planes_of<const float>(mask, mask_strides),
                           split_columns_of(shape, columns, capacity, side_by_side != 0), first, rows, lanes);
    }
  });
}

// Copies of parts: 0 of a left factor, 1 of a right factor, 2 of a right factor that is multiplied in chunks.
extern "C" void split_parts(int64_t kind, int64_t blocks, const void* in, void* copies, int64_t rows,
                            int64_t columns) {
  const auto run = [&]<typename Kind>() {
    cuda_on_host::launch({blocks_of(blocks, rows * columns)}, kThreads, split_kernel<Part, Kind>,
                         static_cast<const float*>(in), static_cast<Part*>(copies), rows, columns);
  };
  if (kind == 0) return run.template operator()<SixLeft>();
  if (kind == 1) return run.template operator()<SixRight>();
  run.template operator()<ChunkedRight>();
}

extern "C" void add_products(int64_t blocks, const void* products, int64_t count, int64_t rows,
                             int64_t columns, const void* bias, int64_t more, void* out, int64_t out_stride) {
  cuda_on_host::launch({blocks_of(blocks, rows * columns)}, kThreads, add_products_kernel,
                       static_cast<const float*>(products), static_cast<int>(count), rows, columns,
                       static_cast<const float*>(bias), more != 0, static_cast<float*>(out), out_stride);
}

// Computes the gradients of features, offset and mask, except those whose pointer is null, from the gradients
// of all columns, in tiles of `capacity` rows. The columns replace their gradients if `kept` is the same
// memory; they are parts on top of each other if `split`, and are not kept if it is null.
extern "C" void deform_conv_sweep(int64_t dtype, const int64_t* s, int64_t wide, int64_t blocks,
                                  int64_t deterministic, int64_t split, void* features, void* offset,
                                  const int64_t* offset_strides, void* mask, const int64_t* mask_strides,
                                  void* grad_rows, void* matrices, void* grad_columns, int64_t capacity,
                                  void* grad_features, void* grad_offset, void* grad_mask, void* kept) {
  const DeformConvShape shape = shape_of(s);
  dispatch(dtype, [&]<typename Element>() {
    using A = accumulate_t<Element>;
    const int64_t tile = capacity * shape.taps() * shape.channels;
    const auto run = [&](const auto& sums) {
      dispatch_width(dtype, shape, wide, [&]<typename T, int N>(int lanes) {
        if constexpr (std::is_same_v<T, Element>) {
          const auto sweep = [&](int64_t first, const auto& target) {
            const int64_t left = shape.positions() - first, rows = left < capacity ? left : capacity;
            cuda_on_host::launch(
                {blocks_of(blocks, batch_count(shape, rows) * kWarp)}, kThreads,
                sweep_kernel<T, A, N, std::decay_t<decltype(sums)>, std::decay_t<decltype(target)>>, shape,
                static_cast<const T*>(features), planes_of<const A>(offset, offset_strides),
                planes_of<const A>(mask, mask_strides),
                columns_of<T>(shape, static_cast<T*>(grad_columns) + first / capacity * tile, capacity), sums,
                planes_of<A>(grad_offset, offset_strides), planes_of<A>(grad_mask, mask_strides), target,
                first, rows, lanes);
          };
          for (int64_t first = 0; first < shape.positions(); first += capacity) {
            const int64_t before = first / capacity * tile;
            if constexpr (std::is_same_v<T, float>) {
              if (split != 0) {
                Part* const parts = kept != nullptr ? static_cast<Part*>(kept) + kParts * before : nullptr;
                sweep(first, split_columns_of(shape, parts, capacity, false));
                continue;
              }
            }
            T* const columns = kept != nullptr ? static_cast<T*>(kept) + before : nullptr;
            sweep(first, WholeColumns<T>{columns_of<T>(shape, columns, capacity)});
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
  dispatch_size(bytes, [&]<typename T>() {
    launch_transpose(static_cast<const T*>(in), static_cast<T*>(out), batch, rows, columns,
                     [&](int64_t threads, auto kernel, auto... arguments) {
                       cuda_on_host::launch({blocks_of(blocks, threads)}, kThreads, kernel, arguments...);
                     });
  });
}
