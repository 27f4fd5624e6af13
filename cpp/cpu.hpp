// Which of the modules this machine can run, best last. Used by the baseline module only.
#pragma once

#include <string>
#include <vector>

namespace rlvar {

inline std::vector<std::string> supported_isas() {
  std::vector<std::string> isas{"baseline"};
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) isas.emplace_back("v3");
#endif
  return isas;
}

}  // namespace rlvar
