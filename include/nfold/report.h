// File: nfold/report.h
//
// What one optimizer step did and what the engine holds. Plain data.
#pragma once

#include <cstdint>
#include <string>

#include "nfold/group.h"

namespace nfold {

// Bytes this rank holds, by what they are for.
struct MemoryReport {
  std::int64_t params_bytes = 0;       // full or sharded parameters at rest
  std::int64_t grads_bytes = 0;        // accumulated gradients, largest so far
  std::int64_t optimizer_bytes = 0;    // master weights and optimizer state
  std::int64_t bucket_peak_bytes = 0;  // gradient buckets, largest so far
  std::int64_t gathered_peak_bytes = 0;  // unsharded parameters beyond
                                         // params_bytes, largest so far
  std::int64_t peak_rss_bytes = 0;       // resident set of the process
};

struct StepReport {
  std::int64_t step = 0;         // optimizer steps tried so far, this included
  bool is_boundary = false;      // false: only counted a micro step
  bool is_skipped = false;       // gradients were not finite
  double grad_norm = 0;          // before clipping, unscaled
  double clipped_grad_norm = 0;  // after clipping
  double lr = 0;                 // of the first parameter group
  double loss_scale = 1;         // that this step's loss was multiplied with
  std::string non_finite;        // "rank 1 layers.3.weight[17] = inf", or ""
  double forward_ms = 0;         // between the previous step and backward
  double backward_ms = 0;
  double optimizer_ms = 0;
  // The caller stood still for reductions and for updated parameters. Gathers
  // of stage 3 are part of forward_ms and backward_ms.
  double comm_wait_ms = 0;
  MemoryReport memory;  // of this rank
  CommCounts comm{};    // of this rank, since the previous step
};

// The report as lines of text: each owner with its bytes and its part of the
// process's peak, and what of that peak has no owner here (activations,
// libraries, memory that is kept for later).
std::string memory_table(const MemoryReport& report);

// Writes the ranges that this process recorded since an engine with
// wall_clock_breakdown was made, as a Chrome trace that Perfetto opens. One
// file per rank; without recorded ranges the trace is empty. Raises IoError.
void write_trace(const std::string& path);

}  // namespace nfold
