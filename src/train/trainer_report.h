// File: trainer_report.h
//
// What a finished run prints: losses, memory and bytes moved, as text. Pure
// functions.
//
//   std::fputs(memory_table(per_rank, unsharded).c_str(), stdout);
#pragma once

#include <string>
#include <vector>

#include "nfold/report.h"

namespace nfold::train {

// One column per rank (at most four, else the smallest and the largest of
// each line) and one, under the last name, for a single unsharded process.
std::string memory_table(const std::vector<MemoryReport>& per_rank,
                         const MemoryReport& unsharded,
                         const std::string& unsharded_name = "one process");

// Calls and bytes that one rank sent, whole run and per step.
std::string comm_table(const CommCounts& counts, std::int64_t num_steps);

// Line by line, the largest of all ranks.
MemoryReport largest_of(const std::vector<MemoryReport>& per_rank);

}  // namespace nfold::train
