// How the lanes of a warp share channels that lie next to each other in memory. Free of torch.
#pragma once

#include "cuda/grid.cuh"

namespace dcn_det {

constexpr int kAccessBytes = 16;  // of the widest access to memory
constexpr int kLeastLanes = 4;    // that share the channels of one place

// What one access to memory moves.
template <typename T, int N>
struct alignas(N * sizeof(T)) Pack {
  T at[N];
};

template <int N, typename T>
__device__ __forceinline__ Pack<T, N> load(const T* from) {
  return *reinterpret_cast<const Pack<T, N>*>(from);
}

template <typename T, int N>
__device__ __forceinline__ void store(T* to, const Pack<T, N>& values) {
  *reinterpret_cast<Pack<T, N>*>(to) = values;
}

// Lanes for so many channels, `width` to an access: a power of 2.
inline int lanes_for(int channels, int width) {
  int lanes = kLeastLanes;
  while (lanes < kWarp && lanes * width < channels) lanes *= 2;
  return lanes;
}

// Groups of `lanes` neighbours, each with work of its own.
struct Share {
  int group, lane, groups, lanes;

  __device__ __forceinline__ Share(int warp_lane, int lanes)
      : group(warp_lane / lanes), lane(warp_lane % lanes), groups(kWarp / lanes), lanes(lanes) {}
};

}  // namespace dcn_det
