// To be included first: forbids the compiler to round a * b + c only once in what follows (see
// rounded_product), so that every instruction set sends samples to the same cells.
#pragma once

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
// GCC would merge short loops over cells into the loops over channels, and then leave these scalar.
#pragma GCC optimize("no-loop-unroll-and-jam")
#endif
