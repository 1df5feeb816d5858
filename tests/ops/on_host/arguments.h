// Shared parts of the functions called from Python.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <deque>
#include <functional>
#include <type_traits>
#include <vector>

#include "cuda_on_host.h"

#include "cuda/sums.cuh"

extern "C" void host_tensor(const void* data, size_t size, bool writable, bool initialized);

namespace dcn_det {

template <typename T>
using accumulate_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Calls body.operator()<T>() with the type of the features.
template <typename Body>
void dispatch(int64_t dtype, const Body& body) {
  switch (dtype) {
    case 0:
      return body.template operator()<float>();
    case 1:
      return body.template operator()<double>();
    case 2:
      return body.template operator()<torch::headeronly::Half>();
    default:
      return body.template operator()<torch::headeronly::BFloat16>();
  }
}

// Scratch memory of a call, which kernels may write to.
template <typename T>
std::vector<T> scratch(int64_t count, bool initialized) {
  std::vector<T> memory(count, initialized ? T{} : T{static_cast<T>(-1)});
  host_tensor(memory.data(), memory.size() * sizeof(T), true, initialized);
  return memory;
}

// The number of blocks of the .cu files, unless a test gives one.
inline unsigned blocks_of(int64_t wanted, int64_t threads) {
  return wanted > 0 ? static_cast<unsigned>(wanted) : blocks_for(threads);
}

using Measure = std::function<void(Word*)>;

template <typename T>
Measure largest_of(const void* values, int64_t count) {
  return [=](Word* largest) {
    cuda_on_host::launch({blocks_for(count)}, kThreads, largest_kernel<T, accumulate_t<T>>,
                         static_cast<const T*>(values), count, largest);
  };
}

// Like add_up in launch.h.
template <typename A, typename Body>
void add_up(void* result, int64_t count, bool deterministic, double terms,
            const std::vector<Measure>& factors, const Body& body) {
  auto* data = static_cast<A*>(result);
  if (!deterministic) return body(FloatingSums<A>{data});
  const int parts = std::is_same_v<A, double> ? 2 : 1;
  std::vector<Word> sums = scratch<Word>(parts * count, true), largest = scratch<Word>(factors.size(), true),
                    spoiled = scratch<Word>(1, true);
  FixedPoint grid;
  host_tensor(&grid, sizeof(grid), true, false);
  for (size_t i = 0; i < factors.size(); ++i) factors[i](largest.data() + i);
  cuda_on_host::launch({1}, 1, fixed_point_kernel, largest.data(), static_cast<int>(factors.size()), terms,
                       &grid);
  const FixedPointSums<A> target{sums.data(), parts == 2 ? sums.data() + count : nullptr, &grid,
                                 spoiled.data()};
  body(target);
  cuda_on_host::launch({blocks_for(count)}, kThreads, finish_sums_kernel<A>, target, count, data);
}

}  // namespace dcn_det
