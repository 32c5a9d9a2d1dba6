#include "nfold/mesh.h"

#include <c10/util/Exception.h>

#include <vector>

#include "layout/mics_ranks.h"

namespace nfold {
namespace {

constexpr char kDataParallel[] = "data_parallel";
constexpr char kMicsShard[] = "mics_shard";
constexpr char kMicsReplica[] = "mics_replica";

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
  const auto ranks = all_ranks(world.size());
  make(kDataParallel, {ranks});
  const auto shard_size = config.zero_optimization.mics_shard_size;
  if (shard_size <= 0) return;
  const auto lists = mics_rank_lists(ranks, static_cast<int>(shard_size));
  make(kMicsShard, lists.shard);
  make(kMicsReplica, lists.replica);
}

Group& Mesh::shard_group() const {
  return groups_.contains(kMicsShard) ? group(kMicsShard) : data_parallel();
}

Group* Mesh::replica_group() const {
  const auto found = groups_.find(kMicsReplica);
  return found == groups_.end() ? nullptr : found->second.get();
}

Group& Mesh::group(const std::string& name) const {
  const auto found = groups_.find(name);
  TORCH_CHECK_VALUE(found != groups_.end(), "[rank ", rank_,
                    "] the mesh has no group '", name, "'; it has ",
                    names_of(groups_));
  return *found->second;
}

}  // namespace nfold
