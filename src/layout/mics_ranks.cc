#include "nfold/mics_ranks.h"

#include <algorithm>
#include <functional>

#include "nfold/errors.h"

namespace nfold {
namespace {

void check_ascending(const RankList& ranks) {
  TORCH_CHECK_VALUE(!ranks.empty(),
                    "MiCS: expected at least one rank but found none");
  TORCH_CHECK_VALUE(ranks.front() >= 0,
                    "MiCS: expected ranks from 0 but found ", ranks.front());
  const auto found =
      std::adjacent_find(ranks.begin(), ranks.end(), std::greater_equal<int>());
  TORCH_CHECK_VALUE(found == ranks.end(),
                    "MiCS: expected ranks in ascending order but found rank ",
                    *(found + 1), " after rank ", *found,
                    "; sort them and name each once");
}

void check_parts(const RankLists& parts, int devices_per_node) {
  const RankList& first = parts.front();
  TORCH_CHECK_VALUE(
      parts.size() > 1,
      "MiCS: expected shard groups of several nodes for a hierarchical gather "
      "but found ranks ",
      first.front(), " to ", first.back(), " on one node of ", devices_per_node,
      " devices; use the flat gather, or shards over more ranks");
  for (const auto& part : parts) {
    TORCH_CHECK_VALUE(
        part.size() == first.size(),
        "MiCS: expected equally many ranks of a shard group on each of its "
        "nodes of ",
        devices_per_node, " devices for a hierarchical gather but found ",
        first.size(), " on the node of rank ", first.front(), " and ",
        part.size(), " on that of rank ", part.front(),
        "; use the flat gather, or a shard size that fills whole nodes");
  }
}

}  // namespace

MicsRankLists mics_rank_lists(const RankList& ranks, int shard_size) {
  check_ascending(ranks);
  MicsRankLists lists;
  lists.shard = consecutive_blocks(ranks, shard_size, "MiCS shard size");
  if (lists.shard.size() > 1) lists.replica = columns(lists.shard);
  return lists;
}

NodeRankLists hierarchical_gather_rank_lists(const RankLists& shard_lists,
                                             int devices_per_node) {
  check_size(devices_per_node, "devices per node");
  NodeRankLists lists;
  for (const auto& shard_group : shard_lists) {
    check_ascending(shard_group);
    const RankLists parts = parts_by_node(shard_group, devices_per_node);
    check_parts(parts, devices_per_node);
    append(lists.intra_node, parts);
    append(lists.inter_node, columns(parts));
  }
  return lists;
}

}  // namespace nfold
