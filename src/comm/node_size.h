// File: node_size.h
//
// How many ranks a machine has, for groups that follow the machines: rank r is
// on node r / size. Asked only when such a group is made.
//
//   const int size = devices_per_node(world);   // every rank
//   const auto lists = hierarchical_gather_rank_lists(shard_groups, size);
//
// The environment variable NDEV_PER_NODE says it where it is set; machines may
// be divided by it, or made up in tests. Else it is World::local_size().
#pragma once

#include <string>
#include <vector>

#include "nfold/world.h"

namespace nfold {

// Collective over the world. Raises c10::ValueError for a variable that is no
// positive integer, and as below.
int devices_per_node(const World& world);

// What a rank says of its node.
struct NodeClaim {
  std::string host;
  int num_ranks = 1;
  bool is_variable = false;  // NDEV_PER_NODE says so
};

// The number on which all ranks agree. Raises c10::ValueError with two ranks
// and their hosts if they differ, and if ranks of one node are not neighbours.
// Pure.
int agreed_node_size(const std::vector<NodeClaim>& claims);

}  // namespace nfold
