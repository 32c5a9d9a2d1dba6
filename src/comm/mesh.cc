#include "nfold/mesh.h"

#include <c10/util/Exception.h>

#include <vector>

#include "comm/node_size.h"
#include "layout/mics_ranks.h"

namespace nfold {
namespace {

constexpr char kDataParallel[] = "data_parallel";
constexpr char kMicsShard[] = "mics_shard";
constexpr char kMicsReplica[] = "mics_replica";
constexpr char kMicsIntraNode[] = "mics_intra_node";
constexpr char kMicsInterNode[] = "mics_inter_node";
constexpr char kSecondaryShard[] = "secondary_shard";

std::string names_of(
    const std::map<std::string, std::unique_ptr<Group>>& groups) {
  std::string names;
  for (const auto& [name, group] : groups) {
    names += (names.empty() ? "" : ", ") + name;
  }
  return names;
}

}  // namespace

Mesh::Mesh(const World& world, const Config& config)
    : rank_(world.rank()), world_size_(world.size()) {
  // Making groups is collective: every rank makes all, in this order.
  const auto make = [&](const char* name, const RankLists& lists) {
    for (const auto& ranks : lists) {
      if (auto group = world.new_group(name, ranks)) {
        groups_[name] = std::move(group);
      }
    }
  };
  const ZeroConfig& zero = config.zero_optimization;
  const auto ranks = all_ranks(world.size());
  make(kDataParallel, {ranks});
  if (zero.zero_hpz_partition_size > 1) {
    make(kSecondaryShard,
         secondary_shard_rank_lists(ranks, zero.zero_hpz_partition_size));
  }
  if (zero.mics_shard_size <= 0) return;
  check_divisible(world.size(), zero.mics_shard_size, "MiCS shard size");
  const auto mics =
      mics_rank_lists(ranks, static_cast<int>(zero.mics_shard_size));
  NodeRankLists hops;
  if (zero.mics_hierarchical_params_gather) {
    hops = hierarchical_gather_rank_lists(mics.shard, devices_per_node(world));
  }
  make(kMicsShard, mics.shard);
  make(kMicsReplica, mics.replica);
  make(kMicsIntraNode, hops.intra_node);
  make(kMicsInterNode, hops.inter_node);
}

Group& Mesh::shard_group() const {
  return groups_.contains(kMicsShard) ? group(kMicsShard) : data_parallel();
}

Group* Mesh::replica_group() const { return find(kMicsReplica); }
Group* Mesh::secondary_shard() const { return find(kSecondaryShard); }
Group* Mesh::mics_inter_node() const { return find(kMicsInterNode); }
Group* Mesh::mics_intra_node() const { return find(kMicsIntraNode); }

Group& Mesh::group(const std::string& name) const {
  Group* found = find(name);
  TORCH_CHECK_VALUE(found != nullptr, "[rank ", rank_,
                    "] the mesh has no group '", name, "'; it has ",
                    names_of(groups_));
  return *found;
}

Group* Mesh::find(const std::string& name) const {
  const auto found = groups_.find(name);
  return found == groups_.end() ? nullptr : found->second.get();
}

}  // namespace nfold
