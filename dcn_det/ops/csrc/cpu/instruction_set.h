// Instruction sets that inner loops are compiled for.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__)
#define DCN_DET_X86 1
#define DCN_DET_AVX2 "avx2,fma,f16c,bmi,bmi2"
#define DCN_DET_AVX512 DCN_DET_AVX2 ",avx512f,avx512bw,avx512cd,avx512dq,avx512vl,prefer-vector-width=512"
#endif

namespace dcn_det {

// In increasing order; `baseline` is the compiler's default target, SSE2 on x86-64.
enum class InstructionSet : int { baseline, avx2, avx512 };

// The best set that this CPU supports, or the one named by DCN_DET_CPU in the environment if the CPU supports
// it. Constant during the life of the process.
InstructionSet instruction_set();

}  // namespace dcn_det
