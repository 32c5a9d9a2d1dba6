#include "engine/mesh_groups.h"

namespace nfold {

UnitGroups groups_on(const Mesh& mesh, const Placement& placement) {
  UnitGroups groups;
  if (placement.expert_size > 1) {
    groups.holders = &mesh.expert_data(placement.expert_size);
    groups.shard = groups.holders;
    groups.experts = &mesh.expert(placement.expert_size);
  } else {
    groups.holders = &mesh.state_group();
    groups.shard = &mesh.shard_group();
    groups.replica = mesh.replica_group();
    groups.secondary = mesh.secondary_shard();
    groups.inter_node = mesh.mics_inter_node();
    groups.intra_node = mesh.mics_intra_node();
    groups.reduce_intra_node = mesh.find("all_to_all_local");
    groups.reduce_inter_node = mesh.find("all_to_all_global");
  }
  if (placement.is_tensor_split) {
    groups.tensor_parts = &mesh.tensor_parallel();
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
