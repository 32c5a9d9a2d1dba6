// File: provided_axes.h
//
// What a group provider gives a mesh: its groups by the names that they have
// there, which groups are left to be made, and where the ranks of the whole
// world stand in them. Making groups inside of a provider's needs that, since
// every rank makes all groups and knows only its own of the provider's.
//
//   ProvidedAxes axes = provided_axes(world, config, provider);  // every rank
//   axes.groups.at("data_parallel");
//
// The rank lists go once over the world group. What is wrong raises
// c10::ValueError on every rank.
#pragma once

#include <map>
#include <string>

#include "comm/mesh_plan.h"
#include "nfold/config.h"
#include "nfold/group.h"
#include "nfold/group_provider.h"
#include "nfold/world.h"

namespace nfold {

struct ProvidedAxes {
  std::map<std::string, Group*> groups;  // the provider's own
  MeshPlan to_make;
  // The ranks over which state is sharded.
  RankLists state_lists;
};

ProvidedAxes provided_axes(const World& world, const Config& config,
                           const GroupProvider& provider);

}  // namespace nfold
