// Carries the schemas the CUDA kernels were compiled against, so that Python can tell a library of another
// version before it loads it. The definitions themselves are made once, by the CPU library or by Python.
#include "common/schemas.h"

#define DCN_DET_LIST(schema) schema,
extern "C" __attribute__((used, visibility("default")))
const char* const dcn_det_cuda_schemas[] = {DCN_DET_SCHEMAS(DCN_DET_LIST)};
#undef DCN_DET_LIST
