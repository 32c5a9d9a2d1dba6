#include "comm/mesh_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <string_view>
#include <utility>

#include "nfold/errors.h"
#include "nfold/expert_ranks.h"
#include "nfold/mics_ranks.h"

namespace nfold {
namespace {

constexpr std::string_view kExpertPrefix = "expert_";
constexpr std::string_view kExpertDataPrefix = "expert_data_";

MeshPlan plan_mics(const Config& config, const RankLists& state_lists,
                   int devices_per_node) {
  const ZeroConfig& zero = config.zero_optimization;
  RankLists shard;
  RankLists replica;
  for (const auto& ranks : state_lists) {
    check_divisible(static_cast<std::int64_t>(ranks.size()),
                    zero.mics_shard_size, "MiCS shard size");
    auto lists = mics_rank_lists(ranks, static_cast<int>(zero.mics_shard_size));
    append(shard, std::move(lists.shard));
    append(replica, std::move(lists.replica));
  }
  NodeRankLists hops;
  if (zero.mics_hierarchical_params_gather) {
    hops = hierarchical_gather_rank_lists(shard, devices_per_node);
  }
  return {{kMicsShard, std::move(shard)},
          {kMicsReplica, std::move(replica)},
          {kMicsIntraNode, std::move(hops.intra_node)},
          {kMicsInterNode, std::move(hops.inter_node)}};
}

bool is_size_after(std::string_view prefix, std::string_view name) {
  if (!name.starts_with(prefix)) return false;
  name.remove_prefix(prefix.size());
  return !name.empty() && std::all_of(name.begin(), name.end(), [](char c) {
    return c >= '0' && c <= '9';
  });
}

}  // namespace

std::string expert_group_name(int size) {
  return fmt::format("{}{}", kExpertPrefix, size);
}

std::string expert_data_group_name(int size) {
  return fmt::format("{}{}", kExpertDataPrefix, size);
}

MeshPlan plan_axes(const Config& config, int world_size) {
  const int data = data_parallel_size_of(config, world_size);
  const auto sequence = static_cast<int>(config.sequence_parallel_size);
  const auto tensor = static_cast<int>(config.tensor_parallel_size);
  auto axes = mesh_rank_lists(world_size, {{"data_parallel_size", data},
                                           {"sequence_parallel_size", sequence},
                                           {"tensor_parallel_size", tensor}});
  MeshPlan plan;
  plan.push_back({kDataParallel, std::move(axes[0])});
  if (sequence > 1) {
    plan.push_back({kSequenceParallel, std::move(axes[1])});
    plan.push_back({kSequenceData,
                    tensor_rank_lists(world_size, {.tensor = tensor}).data});
  }
  if (tensor > 1) plan.push_back({kTensorParallel, std::move(axes[2])});
  return plan;
}

const RankLists& state_lists_of(const MeshPlan& plan) {
  const auto is_named = [](const char* name) {
    return [name](const GroupPlan& group) { return group.name == name; };
  };
  auto found = std::find_if(plan.begin(), plan.end(), is_named(kSequenceData));
  if (found == plan.end()) {
    found = std::find_if(plan.begin(), plan.end(), is_named(kDataParallel));
  }
  TORCH_INTERNAL_ASSERT(found != plan.end());
  return found->lists;
}

bool follows_nodes(const Config& config) {
  const ZeroConfig& zero = config.zero_optimization;
  return zero.zero_quantized_gradients ||
         (zero.mics_shard_size > 0 && zero.mics_hierarchical_params_gather);
}

MeshPlan plan_inside(const Config& config, const RankLists& state_lists,
                     int devices_per_node) {
  const ZeroConfig& zero = config.zero_optimization;
  MeshPlan plan;
  const auto add = [&plan](MeshPlan groups) {
    for (auto& group : groups) plan.push_back(std::move(group));
  };
  if (zero.zero_hpz_partition_size > 1) {
    RankLists secondary;
    for (const auto& ranks : state_lists) {
      append(secondary,
             secondary_shard_rank_lists(ranks, zero.zero_hpz_partition_size));
    }
    add({{kSecondaryShard, std::move(secondary)}});
  }
  if (zero.mics_shard_size > 0) {
    add(plan_mics(config, state_lists, devices_per_node));
  }
  if (config.expert_parallel_size > 1) {
    add(plan_experts(state_lists, config.expert_parallel_size,
                     config.use_data_before_expert_parallelism));
  }
  if (zero.zero_quantized_gradients) {
    add(plan_all_to_all(state_lists, devices_per_node));
  }
  return plan;
}

MeshPlan plan_experts(const RankLists& state_lists, std::int64_t size,
                      bool is_data_before_expert) {
  auto lists =
      expert_rank_lists(state_lists, size,
                        is_data_before_expert ? ExpertOrder::kDataThenExpert
                                              : ExpertOrder::kExpertThenData);
  // Divides a number of ranks, so it is an int.
  const auto checked = static_cast<int>(size);
  return {{expert_data_group_name(checked), std::move(lists.expert_data)},
          {expert_group_name(checked), std::move(lists.expert)}};
}

MeshPlan plan_all_to_all(const RankLists& state_lists, int devices_per_node) {
  NodeRankLists all;
  for (const auto& ranks : state_lists) {
    auto lists = all_to_all_rank_lists(ranks, devices_per_node);
    append(all.intra_node, std::move(lists.intra_node));
    append(all.inter_node, std::move(lists.inter_node));
  }
  return {{kAllToAllLocal, std::move(all.intra_node)},
          {kAllToAllGlobal, std::move(all.inter_node)}};
}

MeshPlan plan_mesh(const Config& config, int world_size, int devices_per_node) {
  MeshPlan plan = plan_axes(config, world_size);
  for (auto& group :
       plan_inside(config, state_lists_of(plan), devices_per_node)) {
    plan.push_back(std::move(group));
  }
  return plan;
}

std::string origin_of(const std::string& name) {
  if (is_size_after(kExpertPrefix, name)) {
    const auto size = name.substr(kExpertPrefix.size());
    return fmt::format(
        "set expert_parallel_size {}, or call create_expert_groups({})", size,
        size);
  }
  if (is_size_after(kExpertDataPrefix, name)) {
    return origin_of(std::string(kExpertPrefix) +
                     name.substr(kExpertDataPrefix.size()));
  }
  using Origin = std::pair<std::string_view, std::string_view>;
  constexpr std::array<Origin, 12> kOrigins = {{
      {kDataParallel, "every mesh makes it"},
      {kSequenceData, "every mesh makes it"},
      {kSequenceParallel, "set sequence_parallel_size above 1"},
      {kTensorParallel, "set tensor_parallel_size above 1"},
      {kPipelineParallel, "only a group provider gives it"},
      {kSecondaryShard,
       "set zero_optimization.zero_hpz_partition_size above 1"},
      {kMicsShard, "set zero_optimization.mics_shard_size"},
      {kMicsReplica,
       "set zero_optimization.mics_shard_size below the ranks over which "
       "state is sharded"},
      {kMicsIntraNode, "set zero_optimization.mics_hierarchical_params_gather"},
      {kMicsInterNode, "set zero_optimization.mics_hierarchical_params_gather"},
      {kAllToAllLocal, "call create_all_to_all_groups()"},
      {kAllToAllGlobal,
       "call create_all_to_all_groups(), with ranks on several nodes"},
  }};
  for (const auto& [group, origin] : kOrigins) {
    if (group == name) return std::string(origin);
  }
  return "";
}

}  // namespace nfold
