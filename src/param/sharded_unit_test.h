// File: sharded_unit_test.h
//
// What the tests of units share: parameters of awkward sizes, and options of
// units on the ranks of a world.
#pragma once

#include <fmt/format.h>
#include <torch/torch.h>

#include <string>
#include <vector>

#include "param/sharded_unit.h"
#include "testing/thread_world.h"

namespace nfold {

inline ParamState make_param(const std::string& name, at::Tensor tensor) {
  tensor.set_requires_grad(tensor.is_floating_point());
  return {name, {name}, {std::move(tensor)}};
}

inline ShardedUnitOptions options_of(int rank, int num_shards) {
  ShardedUnitOptions options;
  options.name = "unit";
  options.rank = rank;
  options.num_shards = num_shards;
  return options;
}

inline ShardedUnitOptions options_of(const World& world) {
  auto options = options_of(world.rank(), world.size());
  options.groups.holders = options.groups.shard = &world.group();
  return options;
}

inline std::vector<ParamState> odd_params() {
  std::vector<ParamState> params;
  float next = 1;
  for (std::int64_t numel : {0, 1, 2, 7, 8, 1023}) {
    params.push_back(
        make_param(fmt::format("p{}", numel), torch::arange(numel) + next));
    next += static_cast<float>(numel);
  }
  return params;
}

// Of units whose full storage has memory only while it is used.
inline ShardedUnitOptions released_options(ShardedUnitOptions options,
                                           at::ScalarType dtype = at::kFloat) {
  options.is_resident = false;
  options.dtype = dtype;
  return options;
}

inline void gather_now(const std::vector<ShardedUnit*>& units,
                       GatherMode mode = GatherMode::kAllGather) {
  ShardedUnit::begin_gather(units, mode);
  for (auto* unit : units) unit->finish_gather();
}

inline ShardedUnitOptions released_options(const World& world,
                                           at::ScalarType dtype = at::kFloat) {
  return released_options(options_of(world), dtype);
}

}  // namespace nfold
