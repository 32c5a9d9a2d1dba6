// File: rank_list_exchange.h
//
// The groups of all ranks, where each knows only its own: the rank lists that
// groups laid out inside of them need.
//
//   const auto lists = exchange_rank_lists(   // every rank
//       world, {{"data-parallel", &data_group}, {"model-parallel", nullptr}});
//   lists[0]   // {0, 2}, {1, 3}
//   lists[1]   // none: no rank has such a group
//
// One all-gather over the world group, of 24 bytes per rank and kind.
#pragma once

#include <vector>

#include "nfold/group.h"
#include "nfold/rank_lists.h"
#include "nfold/world.h"

namespace nfold {

// This rank's group of a kind, or null.
struct OwnGroup {
  const char* kind;  // for errors
  const Group* group;
};

// For each kind, given in the same order on all ranks, the lists of all groups
// by their first ranks. Raises c10::ValueError, on every rank, if only some
// ranks have a group of a kind, if one is not in its own, and if the ranks of a
// group disagree about it.
std::vector<RankLists> exchange_rank_lists(const World& world,
                                           const std::vector<OwnGroup>& own);

}  // namespace nfold
