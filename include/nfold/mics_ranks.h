// File: nfold/mics_ranks.h
//
// MiCS: state is sharded over groups smaller than the world, so that gathers
// stay among few ranks, and replicated between them.
//
//   const auto lists = mics_rank_lists(all_ranks(8), 4);
//   lists.shard     // {0, 1, 2, 3}, {4, 5, 6, 7}
//   lists.replica   // {0, 4}, {1, 5}, {2, 6}, {3, 7}
//
// A gather in a shard group of several nodes can go in two hops, first
// between the nodes and then within each:
//
//   const auto hops = hierarchical_gather_rank_lists(lists.shard, 2);
//   hops.intra_node   // {0, 1}, {2, 3}, {4, 5}, {6, 7}
//   hops.inter_node   // {0, 2}, {1, 3}, {4, 6}, {5, 7}
//
// Groups are made in this order: shard, replica, intra-node, inter-node.
// rank_lists.h says what holds of all rank lists.
//
// Source: MiCS (Zhang et al., 2022), DeepSpeed's MiCS.
#pragma once

#include "nfold/rank_lists.h"

namespace nfold {

struct MicsRankLists {
  RankLists shard;    // blocks of the ranks; hold one copy of the state
  RankLists replica;  // the ranks that hold the same shard
};

// `ranks` are those of the data group to lay out, ascending: all_ranks for
// the world. With one shard group there are no replica groups, since each
// would be one rank.
//
// Raises c10::ValueError unless the shard size divides the ranks, which one
// beyond their number does not, and for ranks that do not ascend.
MicsRankLists mics_rank_lists(const RankList& ranks, int shard_size);

// The two hops for each shard group, in their order; rank r is on node
// r / devices_per_node. That is the rank in the world, so a shard group of
// every second rank has half of each node.
//
// Raises c10::ValueError for a shard group within one node, one that does not
// have equally many ranks on each of its nodes, and one that does not ascend:
// the flat order of the shards would not be node by node.
NodeRankLists hierarchical_gather_rank_lists(const RankLists& shard_lists,
                                             int devices_per_node);

}  // namespace nfold
