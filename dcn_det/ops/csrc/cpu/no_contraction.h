// Include first: keeps the compiler from rounding a * b + c only once in the following code (see
// rounded_product), so that samples fall on the same cells with every instruction set.
#pragma once

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
// Otherwise GCC merges short loops over cells into the loops over channels, which then stay scalar.
#pragma GCC optimize("no-loop-unroll-and-jam")
#endif
