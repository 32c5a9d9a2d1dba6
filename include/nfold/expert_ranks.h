// File: nfold/expert_ranks.h
//
// Which ranks share out the experts of a mixture between them (expert groups)
// and which hold the same experts (expert data groups), with pipeline stages
// and with tensor or sequence parallelism beside it.
//
//   const auto lists = expert_rank_lists(8, {.expert = 2});
//   lists.expert_data   // {0, 2, 4, 6}, {1, 3, 5, 7}
//   lists.expert        // {0, 1}, {2, 3}, {4, 5}, {6, 7}
//
// Tokens are exchanged within an expert group, gradients of experts are
// reduced within an expert data group. rank_lists.h says what holds of all
// rank lists.
#pragma once

#include "nfold/rank_lists.h"

namespace nfold {

// Which of the two kinds of group has ranks that are neighbours.
enum class ExpertOrder {
  kExpertThenData,  // the expert groups: tokens travel short ways
  kDataThenExpert,  // the expert data groups: gradients do
};

// What the ranks of one model group, tensor or sequence parallel, hold of an
// expert. A lane is the ranks of a stage with the same place in their model
// groups.
enum class ExpertPlacement {
  // A part each. Both kinds of group stay within a lane.
  kSplit,
  // Each a whole one. The lanes stand one behind the other and are cut as one
  // sequence: an expert group stays within a lane if its size divides the
  // lane, an expert data group has ranks of all lanes and is not sorted.
  // DeepSpeed's mp_mode "tp".
  kWholeByLane,
  // Each a whole one, as if there were no model groups. DeepSpeed's mp_mode
  // "sp".
  kWholeConsecutive,
};

struct ExpertDegrees {
  int expert = 1;    // ranks that share out the experts
  int pipeline = 1;  // stages; each has its own experts
  int model = 1;     // ranks of a model group
  // Without effect on the lists if `model` is 1.
  ExpertPlacement placement = ExpertPlacement::kSplit;
  ExpertOrder order = ExpertOrder::kExpertThenData;
};

struct ExpertRankLists {
  RankLists expert_data;
  RankLists expert;
};

// Stage by stage, of kSplit lane by lane within a stage.
//
// Raises c10::ValueError unless model x pipeline divides the world and the
// expert size the ranks of a stage, or of a lane of it for kSplit;
// c10::NotImplementedError for data then expert with whole experts in model
// groups.
//
// Source: DeepSpeed-MoE; kSplit is DeepSpeed-TED.
ExpertRankLists expert_rank_lists(int world_size, const ExpertDegrees& degrees);

// The same inside of given groups, each cut as one sequence in the order of
// its ranks: the data groups of a mesh, or of another library. Group by group.
//
// Raises c10::ValueError unless the expert size divides the ranks of each.
ExpertRankLists expert_rank_lists(const RankLists& data_groups,
                                  std::int64_t expert_size, ExpertOrder order);

}  // namespace nfold
