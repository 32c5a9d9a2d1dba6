#include "engine/mesh_groups.h"

namespace nfold {

Group& state_group(const Mesh& mesh) {
  auto* group = mesh.find("sequence_data");
  return group ? *group : mesh.data_parallel();
}

int sequence_parallel_size(const Mesh& mesh) {
  const auto* group = mesh.find("sequence_parallel");
  return group ? group->size() : 1;
}

std::vector<Group*> groups_of(const Mesh& mesh) {
  std::vector<Group*> groups;
  for (const auto* name :
       {"data_parallel", "mics_shard", "mics_replica", "secondary_shard",
        "mics_inter_node", "mics_intra_node"}) {
    if (auto* group = mesh.find(name)) groups.push_back(group);
  }
  return groups;
}

UnitGroups groups_on(const Mesh& mesh, const Placement& placement) {
  UnitGroups groups;
  if (placement.expert_size > 1) {
    groups.holders =
        &mesh.group("expert_data_" + std::to_string(placement.expert_size));
    groups.shard = groups.holders;
    groups.experts =
        &mesh.group("expert_" + std::to_string(placement.expert_size));
  } else {
    groups.holders = &state_group(mesh);
    groups.shard = &mesh.shard_group();
    groups.replica = mesh.replica_group();
    groups.secondary = mesh.secondary_shard();
    groups.inter_node = mesh.mics_inter_node();
    groups.intra_node = mesh.mics_intra_node();
  }
  if (placement.is_tensor_split) {
    groups.tensor_parts = &mesh.group("tensor_parallel");
  } else {
    groups.tensor_replicas = mesh.find("tensor_parallel");
  }
  return groups;
}

GroupsOf groups_on(const Mesh& mesh) {
  return [&mesh](const Placement& placement) {
    return groups_on(mesh, placement);
  };
}

}  // namespace nfold
