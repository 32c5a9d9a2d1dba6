// File: reduction_setup.h
//
// What a configuration makes of the reduction of gradients. Pure.
#pragma once

#include <vector>

#include "engine/stage_policy.h"
#include "grad/grad_reducer.h"
#include "nfold/config.h"
#include "nfold/mesh.h"
#include "param/sharded_unit.h"

namespace nfold {

// From gradients to their mean over ranks in up to three factors: for each
// rank's gradient, for the sum, and for the optimizer to apply on the fly.
// num_ranks are those with a batch of their own: ranks of a sequence group have
// parts of one, and their gradients add up to that of its loss.
struct GradScales {
  double before = 1;
  double after = 1;
  double in_optimizer = 1;
};

GradScales scales_of(const Config& config, int num_ranks);

// What could carry gradients while backward goes on.
struct Carriers {
  bool shares_memory = false;  // all ranks that reduce with each other
  int num_threads = 1;         // that compute, of all ranks on this host
  int num_cores = 1;           // of this host, for those threads
};

// Whether buckets are reduced while backward still runs: what the configuration
// says, else at stage 3 if that takes nothing from backward: over a network, or
// where cores are to spare. Ranks that share memory and occupy all cores reduce
// each bucket in between instead, with what it is made of still in caches.
bool overlaps_backward(const ZeroConfig& zero, const Carriers& carriers);

// `units` are those that are trained.
GradReducerOptions reducer_options(const Config& config,
                                   const StagePolicy& policy,
                                   const std::vector<ShardedUnit*>& units,
                                   const Mesh& mesh);

}  // namespace nfold
