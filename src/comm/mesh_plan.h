// File: mesh_plan.h
//
// Which groups a configuration asks for, before any is made: their names and
// the rank lists of all ranks, in the order in which they are made. The parts
// of plan_mesh (nfold/mesh.h), which a Mesh around the groups of a provider
// needs one by one.
//
//   const MeshPlan axes = plan_axes(config, /*world_size=*/8);
//   for (const auto& [name, lists] :
//        plan_inside(config, state_lists_of(axes), 4)) ...
//
// Pure functions of their arguments, for any thread. They raise
// c10::ValueError as the rank lists do (layout/rank_lists.h).
#pragma once

#include <string>
#include <vector>

#include "nfold/config.h"
#include "nfold/mesh.h"
#include "nfold/rank_lists.h"

namespace nfold {

inline constexpr char kDataParallel[] = "data_parallel";
inline constexpr char kSequenceParallel[] = "sequence_parallel";
inline constexpr char kSequenceData[] = "sequence_data";
inline constexpr char kTensorParallel[] = "tensor_parallel";
inline constexpr char kPipelineParallel[] = "pipeline_parallel";
inline constexpr char kSecondaryShard[] = "secondary_shard";
inline constexpr char kMicsShard[] = "mics_shard";
inline constexpr char kMicsReplica[] = "mics_replica";
inline constexpr char kMicsIntraNode[] = "mics_intra_node";
inline constexpr char kMicsInterNode[] = "mics_inter_node";
inline constexpr char kAllToAllLocal[] = "all_to_all_local";
inline constexpr char kAllToAllGlobal[] = "all_to_all_global";
// "expert_4", "expert_data_4".
std::string expert_group_name(int size);
std::string expert_data_group_name(int size);

using MeshPlan = std::vector<GroupPlan>;

// Data, sequence and tensor groups and what joins them. sequence_data is left
// out where it would be data_parallel.
MeshPlan plan_axes(const Config& config, int world_size);

// The ranks over which state is sharded: sequence_data, or data_parallel.
const RankLists& state_lists_of(const MeshPlan& plan);

// What is laid out inside of each of the state lists. devices_per_node counts
// only if follows_nodes(config).
MeshPlan plan_inside(const Config& config, const RankLists& state_lists,
                     int devices_per_node);
bool follows_nodes(const Config& config);

MeshPlan plan_experts(const RankLists& state_lists, std::int64_t size,
                      bool is_data_before_expert);
MeshPlan plan_all_to_all(const RankLists& state_lists, int devices_per_node);

// What makes the group of this name, for the error of one that there is not:
// "set tensor_parallel_size above 1". Empty for a name that no group has.
std::string origin_of(const std::string& name);

}  // namespace nfold
