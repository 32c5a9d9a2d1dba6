// File: stage_policy.h
//
// What a ZeRO stage means, as independent facts. This is the only place in
// nfold that switches on the stage.
#pragma once

#include "nfold/config.h"

namespace nfold {

struct StagePolicy {
  // Each rank updates its shard only; the others arrive by all-gather.
  bool shards_optimizer = false;
  // Parameters are whole only while an operator uses them.
  bool shards_params = false;
  // Gradients are summed where they are owned (reduce_scatter) rather than
  // everywhere (all_reduce).
  bool reduces_to_owner = false;
  // Micro steps accumulate locally; only the boundary communicates.
  bool reduces_at_boundary = false;
};

// config must be validated. Stages 1 and 2 differ only in what they permit:
// nfold's stage 1 keeps no full gradient either, unless it reduces at the
// boundary, which stage 2 cannot.
StagePolicy stage_policy(const Config& config);

}  // namespace nfold
