// File: wait_graph.h
//
// Which ranks can never go on, because they wait for each other: rank 0 in one
// group for rank 1, which waits in another group for rank 0.
//
//   const auto stuck = find_stuck(statuses);
//   if (!stuck.empty()) fail(describe(stuck));
//
// [Note: Stuck ranks]
// A caller in collective n of a group waits for each rank of the group that
// has entered at most n of its collectives; a caller outside of collectives,
// for the one rank that it names. A rank of which a caller does not wait may
// still come. So a rank is stuck when all its callers wait, and each of them
// for at least one rank that is stuck: the largest set of which that is true.
// It holds cycles and the ranks that wait for one.
//
// A rank of which no status is at hand may come, too.
//
// Statuses may be of different moments, as long as they were true then.
// Suppose that the first stuck rank to go on waited in a collective. Then
// another has entered it before, hence has gone on even earlier. For waits
// outside of collectives, whose counts are in no status, stall_judge.h looks
// twice.
//
// Pure. Time and memory grow with the number of statuses.
#pragma once

#include <string>
#include <vector>

#include "comm/rank_status.h"

namespace nfold {

struct StuckWait {
  RankWait wait;
  // The stuck ranks that this caller waits for, in order; at least one.
  std::vector<int> waits_for;
};

struct StuckRank {
  int rank = 0;
  std::vector<StuckWait> waits;
};

// In the order of the ranks. At most one status for each rank.
std::vector<StuckRank> find_stuck(const std::vector<RankStatus>& statuses);

// One line for each caller, those of a cycle first. Not for nothing.
std::string describe(const std::vector<StuckRank>& stuck);

}  // namespace nfold
