// File: fetch_plan.h
//
// What to gather ahead and what to release at each access of a step. Pure:
// every rank compiles the same plan from the same trace.
//
//   auto plan = compile_fetch_plan(trace, numels, options);
//   const FetchStep& now = plan.steps[entry];
//   // release now.release, make trace[entry] whole, begin now.prefetch
//
// The options keep the meaning they have in ZeRO stage 3 (Rajbhandari et al.,
// "ZeRO-Infinity", 2021; the keys are DeepSpeed's):
//   max_live_numel     elements of all units that are whole or on their way
//                      (stage3_max_live_parameters)
//   prefetch_numel     elements gathered ahead of their use
//                      (stage3_prefetch_bucket_size)
//   max_reuse_numel    a unit whose next use is at most this many elements of
//                      other accesses away stays whole, as far as the live
//                      budget allows (stage3_max_reuse_distance)
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "fetch/access_trace.h"

namespace nfold {

struct FetchPlanOptions {
  std::int64_t max_live_numel = 1'000'000'000;
  std::int64_t prefetch_numel = 50'000'000;
  std::int64_t max_reuse_numel = 1'000'000'000;
};

struct FetchStep {
  // Before the unit of this entry is made whole.
  std::vector<std::size_t> release;
  // After that, in this order. Whatever is not whole by then has to be
  // released before, so `release` makes room for these too.
  std::vector<std::size_t> prefetch;
};

struct FetchPlan {
  AccessTrace trace;
  std::vector<FetchStep> steps;  // one for each entry of the trace
  // Of trace and options: ranks with equal hashes gather in the same order.
  std::uint64_t hash = 0;
};

// `numels` of all units. A unit larger than the live budget is still gathered
// when it is needed, alone. What a step leaves whole is released at its end.
FetchPlan compile_fetch_plan(AccessTrace trace,
                             const std::vector<std::int64_t>& numels,
                             const FetchPlanOptions& options);

}  // namespace nfold
