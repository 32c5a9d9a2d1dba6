#include "kernels/simd.h"

#include <c10/util/Exception.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdlib>

namespace nfold::kernels {

const char* name_of(Simd simd) {
  switch (simd) {
    case Simd::kBaseline:
      return "baseline";
    case Simd::kAvx2:
      return "avx2";
    case Simd::kAvx512:
      return "avx512";
  }
  return "unknown";
}

std::vector<Simd> supported_simds() {
  std::vector<Simd> simds{Simd::kBaseline};
#ifdef NFOLD_KERNELS_X86
  const bool has_avx2 = __builtin_cpu_supports("avx2") &&
                        __builtin_cpu_supports("fma") &&
                        __builtin_cpu_supports("f16c");
  if (has_avx2) simds.push_back(Simd::kAvx2);
  if (has_avx2 && __builtin_cpu_supports("avx512f") &&
      __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    simds.push_back(Simd::kAvx512);
  }
#endif
  return simds;
}

Simd simd_of(std::string_view name) {
  const std::vector<Simd> simds = supported_simds();
  if (name.empty()) return simds.back();
  const auto found =
      std::find_if(simds.begin(), simds.end(),
                   [name](Simd simd) { return name_of(simd) == name; });
  if (found != simds.end()) return *found;
  std::vector<std::string> names;
  for (const Simd simd : simds) names.emplace_back(name_of(simd));
  TORCH_CHECK_VALUE(
      false,
      fmt::format("NFOLD_SIMD: expected one of {} (what this build and "
                  "processor support) but found '{}'; unset it to use the "
                  "fastest",
                  fmt::join(names, ", "), name));
}

Simd active_simd() {
  static const Simd kActive = [] {
    const char* name = std::getenv("NFOLD_SIMD");
    return simd_of(name == nullptr ? "" : name);
  }();
  return kActive;
}

const Loops& loops_of(Simd simd) {
#ifdef NFOLD_KERNELS_X86
  if (simd == Simd::kAvx512) return kAvx512Loops;
  if (simd == Simd::kAvx2) return kAvx2Loops;
#endif
  return kBaselineLoops;
}

const Loops& loops() {
  static const Loops& chosen = loops_of(active_simd());
  return chosen;
}

}  // namespace nfold::kernels
