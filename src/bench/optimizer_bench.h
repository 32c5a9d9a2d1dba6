// File: optimizer_bench.h
//
// The optimizer steps, norms, sums and casts of a training step, by the bytes
// they must read and write at least, beside loops over as many arrays that do
// next to nothing, a plain copy, and torch's fused AdamW. All take turns on the
// same buffers, which are warm and lie as those of training do.
//
//   const OptimizerBench bench = bench_optimizer({.numel = 100'000'000});
//   bench.rows[0].gb_per_second.median
//
// Holds 20 bytes of memory for each element. One at a time per process.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "bench/rounds.h"

namespace nfold::bench {

struct OptimizerBenchOptions {
  std::int64_t numel = 100'000'000;
  int num_rounds = 7;
};

// What one element costs, in bytes.
struct ElementBytes {
  int read = 0;
  int written = 0;
  int total() const { return read + written; }
};

struct KernelRow {
  std::string name = {};
  ElementBytes bytes = {};
  Spread seconds = {};
  Spread gb_per_second = {};
  // Bytes per second by those of the plain loop over as many arrays, and of
  // the copy, round by round. 1 for yardsticks themselves.
  Spread by_plain_loop = {};
  Spread by_copy = {};
  bool is_yardstick = false;
};

struct OptimizerBench {
  std::int64_t numel = 0;
  int num_threads = 0;
  int num_rounds = 0;
  std::string simd = {};
  std::int64_t buffer_bytes = 0;
  std::int64_t huge_page_bytes = 0;  // of the process; -1: unknown
  std::vector<KernelRow> rows = {};  // the copy first
};

// Raises c10::ValueError for numbers below 1.
OptimizerBench bench_optimizer(const OptimizerBenchOptions& options);

}  // namespace nfold::bench
