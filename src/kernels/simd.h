// File: simd.h
//
// Which instruction set the kernels use. Chosen once per process: the best one
// that the processor has, or the one that the environment variable NFOLD_SIMD
// names (baseline, avx2 or avx512). The choice changes speed, never results.
//
//   loops().sum[...]            // as chosen
//   loops_of(Simd::kBaseline)   // tests compare the sets
//
// Callable from any thread.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "kernels/loops.h"

namespace nfold::kernels {

enum class Simd : std::uint8_t { kBaseline, kAvx2, kAvx512 };

const char* name_of(Simd simd);

// Those that this build has and this processor can run, slowest first.
std::vector<Simd> supported_simds();

// The one named, or the best if the name is empty. Raises c10::ValueError for
// an unknown name or a set the processor does not have.
Simd simd_of(std::string_view name);

// The one in use.
Simd active_simd();

const Loops& loops_of(Simd simd);
const Loops& loops();

}  // namespace nfold::kernels
