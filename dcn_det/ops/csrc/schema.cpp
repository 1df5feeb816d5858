// Defines the operators. Kernels register themselves per device; autograd rules and fake kernels are in
// Python.
#include <torch/csrc/stable/library.h>

#include "common/schemas.h"

STABLE_TORCH_LIBRARY(dcn_det, m) {
#define DCN_DET_DEFINE(schema) m.def(schema);
  DCN_DET_SCHEMAS(DCN_DET_DEFINE)
#undef DCN_DET_DEFINE
}
