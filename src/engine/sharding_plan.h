// File: sharding_plan.h
//
// What a configuration makes of a module's parameters: which form a unit, in
// which dtypes, and whether the unit is whole at rest. Pure.
#pragma once

#include <cstddef>
#include <vector>

#include "engine/stage_policy.h"
#include "nfold/config.h"
#include "param/param_state.h"
#include "param/sharded_unit.h"

namespace nfold {

struct PlannedUnit {
  ShardedUnitOptions options;
  std::vector<std::size_t> params;  // indices, ascending
};

// The units of this rank. Every parameter is in exactly one; only names, sizes,
// dtypes, requires_grad and placements of the parameters count.
std::vector<PlannedUnit> plan_sharding(const std::vector<ParamState>& params,
                                       const Config& config,
                                       const StagePolicy& policy,
                                       const GroupsOf& groups_of);

}  // namespace nfold
