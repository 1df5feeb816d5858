// Chooses the instruction set of the inner loops.
#include "cpu/instruction_set.h"

#include <cstdlib>
#include <cstring>

namespace dcn_det {
namespace {

constexpr const char* kNames[] = {"baseline", "avx2", "avx512"};

InstructionSet best_set() {
#if defined(DCN_DET_X86)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  return avx512 ? InstructionSet::avx512 : (avx2 ? InstructionSet::avx2 : InstructionSet::baseline);
#else
  return InstructionSet::baseline;
#endif
}

InstructionSet choose() {
  const InstructionSet best = best_set();
  const char* wanted = std::getenv("DCN_DET_CPU");
  for (int i = 0; wanted != nullptr && i < static_cast<int>(best); ++i) {
    if (std::strcmp(wanted, kNames[i]) == 0) return static_cast<InstructionSet>(i);
  }
  return best;
}

const InstructionSet chosen = choose();

}  // namespace

InstructionSet instruction_set() { return chosen; }

}  // namespace dcn_det

// Read by Python through ctypes.
extern "C" __attribute__((used, visibility("default"))) const char* dcn_det_instruction_set() {
  return dcn_det::kNames[static_cast<int>(dcn_det::chosen)];
}
