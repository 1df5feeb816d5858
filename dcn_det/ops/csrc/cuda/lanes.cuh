// How the lanes of a warp share contiguous channels. Free of torch.
#pragma once

#include "cuda/grid.cuh"

namespace dcn_det {

constexpr int kAccessBytes = 16;  // of the widest memory access
constexpr int kLeastLanes = 4;    // minimum number of lanes that share channels

// Values moved by one memory access.
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

// The number of lanes for so many channels, `width` per access: a power of 2.
inline int lanes_for(int channels, int width) {
  int lanes = kLeastLanes;
  while (lanes < kWarp && lanes * width < channels) lanes *= 2;
  return lanes;
}

// A lane's place among groups of `lanes` neighbors; each group has its own work.
struct Share {
  int group, lane, groups, lanes;

  __device__ __forceinline__ Share(int warp_lane, int lanes)
      : group(warp_lane / lanes), lane(warp_lane % lanes), groups(kWarp / lanes), lanes(lanes) {}
};

}  // namespace dcn_det
