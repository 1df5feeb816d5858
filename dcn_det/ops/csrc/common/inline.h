// Marks functions that are inlined into every kernel that calls them.
#pragma once

#if defined(__CUDACC__)
#define DCN_DET_INLINE __host__ __device__ __forceinline__
#else
#define DCN_DET_INLINE inline __attribute__((always_inline))
#endif
