// Embeds the schemas that the CUDA kernels were compiled with, so that Python recognizes a library of another
// version before loading it. The operators are defined once, by the CPU library or by Python.
#include "common/schemas.h"

#define DCN_DET_LIST(schema) schema,
extern "C" __attribute__((used, visibility("default")))
const char* const dcn_det_cuda_schemas[] = {DCN_DET_SCHEMAS(DCN_DET_LIST)};
#undef DCN_DET_LIST
