#include "nfold/mesh.h"

#include <c10/util/Exception.h>
#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <utility>

#include "comm/mesh_plan.h"
#include "comm/node_size.h"
#include "comm/provided_axes.h"

namespace nfold {

Mesh::Mesh(const World& world, const Config& config)
    : world_(&world),
      rank_(world.rank()),
      world_size_(world.size()),
      ranks_on_host_(world.local_size()),
      is_data_before_expert_(config.use_data_before_expert_parallelism) {
  const MeshPlan axes = plan_axes(config, world.size());
  state_lists_ = state_lists_of(axes);
  finish(config, axes);
}

Mesh::Mesh(const World& world, const Config& config, GroupProvider& provider)
    : world_(&world),
      rank_(world.rank()),
      world_size_(world.size()),
      ranks_on_host_(world.local_size()),
      is_data_before_expert_(config.use_data_before_expert_parallelism) {
  ProvidedAxes axes = provided_axes(world, config, provider);
  state_lists_ = std::move(axes.state_lists);
  for (const auto& [name, group] : axes.groups) {
    // The provider's, so nothing is to be deleted.
    groups_[name] = std::shared_ptr<Group>(group, [](Group* /*group*/) {});
  }
  finish(config, axes.to_make);
}

void Mesh::finish(const Config& config, const MeshPlan& plan) {
  // All is planned before anything is made, so that an error costs nothing.
  const int devices = follows_nodes(config) ? devices_per_node(*world_) : 1;
  const MeshPlan inside = plan_inside(config, state_lists_, devices);
  make(plan);
  if (find(kSequenceData) == nullptr) {
    groups_[kSequenceData] = groups_.at(kDataParallel);
  }
  make(inside);
  if (config.expert_parallel_size > 1) {
    expert_sizes_.insert(static_cast<int>(config.expert_parallel_size));
  }
  data_parallel_ = axis_of(kDataParallel);
  sequence_parallel_ = axis_of(kSequenceParallel);
  tensor_parallel_ = axis_of(kTensorParallel);
  pipeline_parallel_ = axis_of(kPipelineParallel);
}

// Making groups is collective: every rank makes all, in the order of the plan.
void Mesh::make(const MeshPlan& plan) {
  for (const auto& [name, lists] : plan) {
    if (groups_.contains(name)) continue;
    for (const auto& ranks : lists) {
      if (auto group = world_->new_group(name, ranks)) {
        groups_[name] = std::move(group);
      }
    }
    destroyed_.erase(name);
  }
}

Mesh::Axis Mesh::axis_of(const std::string& name) const {
  const Group* group = find(name);
  if (group == nullptr) return {};
  return {.size = group->size(), .rank = group->rank()};
}

Group& Mesh::shard_group() const {
  Group* shard = find(kMicsShard);
  return shard == nullptr ? state_group() : *shard;
}

Group& Mesh::expert(int size) const { return group(expert_group_name(size)); }

Group& Mesh::expert_data(int size) const {
  return group(expert_data_group_name(size));
}

void Mesh::create_expert_groups(int size) {
  TORCH_CHECK_VALUE(find(kMicsShard) == nullptr, "[rank ", rank_,
                    "] expert groups of ", size,
                    " ranks: the mesh has MiCS shard groups, and experts are "
                    "sharded over their own groups; make one without "
                    "mics_shard_size");
  make(plan_experts(state_lists_, size, is_data_before_expert_));
  expert_sizes_.insert(size);
}

std::optional<int> Mesh::largest_expert_size() const {
  if (expert_sizes_.empty()) return std::nullopt;
  return *expert_sizes_.rbegin();
}

std::string Mesh::largest_expert_name() const {
  const auto size = largest_expert_size();
  return size ? fmt::format("ep_size_{}", *size) : "ep_size_None";
}

int Mesh::expert_tensor_parallel_size() const {
  return expert_sizes_.empty() ? 1 : tensor_parallel_.size;
}

void Mesh::create_all_to_all_groups() {
  if (find(kAllToAllLocal) != nullptr) return;
  make(plan_all_to_all(state_lists_, devices_per_node(*world_)));
}

Group& Mesh::group(const std::string& name) const {
  Group* found = find(name);
  if (found != nullptr) return *found;
  std::string names;
  for (const auto& [other, group] : groups_) {
    names += (names.empty() ? "" : ", ") + other;
  }
  const std::string origin = origin_of(name);
  TORCH_CHECK_VALUE(!destroyed_.contains(name), "[rank ", rank_,
                    "] the mesh has no group '", name,
                    "' any more, as it was destroyed; it has ", names,
                    ". Make another mesh");
  TORCH_CHECK_VALUE(false, "[rank ", rank_, "] the mesh has no group '", name,
                    "'; it has ", names,
                    origin.empty() ? ", and no configuration makes one of this "
                                     "name"
                                   : ". To have it, " + origin);
}

Group* Mesh::find(const std::string& name) const {
  const auto found = groups_.find(name);
  return found == groups_.end() ? nullptr : found->second.get();
}

std::vector<Group*> Mesh::groups() const {
  std::vector<Group*> all;
  for (const auto& [name, group] : groups_) {
    if (std::find(all.begin(), all.end(), group.get()) == all.end()) {
      all.push_back(group.get());
    }
  }
  return all;
}

int Mesh::source_rank(const std::string& name) const {
  const bool is_axis = name == kSequenceParallel || name == kTensorParallel ||
                       name == kPipelineParallel;
  if (is_axis && find(name) == nullptr && !destroyed_.contains(name)) {
    return rank_;
  }
  return group(name).global_ranks().front();
}

void Mesh::destroy(const std::string& name) {
  const Group* ended = &group(name);
  std::erase_if(groups_, [&](const auto& entry) {
    if (entry.second.get() != ended) return false;
    destroyed_.insert(entry.first);
    return true;
  });
  for (auto size = expert_sizes_.begin(); size != expert_sizes_.end();) {
    const bool is_whole = find(expert_group_name(*size)) != nullptr &&
                          find(expert_data_group_name(*size)) != nullptr;
    size = is_whole ? std::next(size) : expert_sizes_.erase(size);
  }
}

}  // namespace nfold
