// File: bench_table.h
//
// What `nfold bench` prints of its measurements: a table for people, or JSON
// with every figure for programs.
//
//   fmt::print("{}", format_bench(bench_optimizer(options)));
//   fmt::print("{}", bench_json(rows, about));
//
// Pure functions; thread-safe.
#pragma once

#include <string>
#include <vector>

#include "bench/collectives_bench.h"
#include "bench/optimizer_bench.h"

namespace nfold::train {

std::string format_bench(const bench::OptimizerBench& bench);
std::string bench_json(const bench::OptimizerBench& bench);

// What a table of collectives does not say in its rows.
struct CollectivesAbout {
  int num_ranks = 0;
  int num_threads = 0;  // of a rank
  int num_rounds = 0;
};

std::string format_bench(const std::vector<bench::CollectiveRow>& rows,
                         const CollectivesAbout& about);
std::string bench_json(const std::vector<bench::CollectiveRow>& rows,
                       const CollectivesAbout& about);

}  // namespace nfold::train
