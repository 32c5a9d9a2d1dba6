// File: unit_groups.h
//
// Over whom a unit is sharded, and who else has to do with it. The groups
// belong to a mesh, which outlives the units.
//
//   UnitGroups groups = groups_of(param.placement);   // a GroupsOf
//   all_gather(*groups.shard, ...)
//
// Most models have the same groups for all their units. Experts and the parts
// of tensor-parallel layers are held by fewer ranks than the rest.
#pragma once

#include <functional>

#include "nfold/group.h"
#include "nfold/placement.h"

namespace nfold {

struct UnitGroups {
  // The ranks that have the unit's parameters, whole or a shard of them.
  Group* holders = nullptr;
  // Those among them that hold it once between them.
  Group* shard = nullptr;
  // Those that hold the same shard; null if that is only this rank.
  Group* replica = nullptr;
  // Neighbours that keep a second, larger shard after the first gather of a
  // step (hpZ); null: nobody does.
  Group* secondary = nullptr;
  // The shard group as rows and columns, for gathers in two hops: rank
  // node * intra_node->size() + place. Both or neither.
  Group* inter_node = nullptr;
  Group* intra_node = nullptr;
  // The shard group as rows and columns too, for quantized reductions: with the
  // columns null if there is one row. Null: the shard group is one row.
  Group* reduce_intra_node = nullptr;
  Group* reduce_inter_node = nullptr;
  // Ranks that hold other parameters in the place of these: other experts,
  // other parts of a split layer. Null: there are none.
  Group* experts = nullptr;
  Group* tensor_parts = nullptr;
  // Ranks of a tensor group that hold the same values of a layer that is not
  // split. They compute the same update; nothing is communicated for it.
  Group* tensor_replicas = nullptr;

  bool operator==(const UnitGroups&) const = default;
};

using GroupsOf = std::function<UnitGroups(const Placement&)>;

}  // namespace nfold
