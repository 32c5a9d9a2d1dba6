#include "nfold/expert_ranks.h"

#include <utility>

#include "nfold/errors.h"

namespace nfold {
namespace {

void check_degrees(int world_size, const ExpertDegrees& degrees) {
  check_size(world_size, "world size");
  check_size(degrees.model, "model size");
  check_size(degrees.pipeline, "pipeline size");
  check_divisible(world_size,
                  static_cast<std::int64_t>(degrees.model) * degrees.pipeline,
                  "model size * pipeline size");
  TORCH_CHECK_NOT_IMPLEMENTED(
      degrees.order == ExpertOrder::kExpertThenData || degrees.model == 1 ||
          degrees.placement == ExpertPlacement::kSplit,
      "expert groups: data before expert is not available with whole experts "
      "on model groups of ",
      degrees.model,
      " ranks; use expert before data, or split the experts over them");
}

// The sequences of ranks that are cut into groups; no group crosses them.
RankLists sequences_of_stage(const RankList& stage,
                             const ExpertDegrees& degrees) {
  if (degrees.placement == ExpertPlacement::kWholeConsecutive) return {stage};
  RankLists lanes =
      columns(consecutive_blocks(stage, degrees.model, "model size"));
  if (degrees.placement == ExpertPlacement::kSplit) return lanes;
  RankList joined;
  for (const auto& lane : lanes) {
    joined.insert(joined.end(), lane.begin(), lane.end());
  }
  return {joined};
}

}  // namespace

ExpertRankLists expert_rank_lists(int world_size,
                                  const ExpertDegrees& degrees) {
  check_degrees(world_size, degrees);
  RankLists sequences;
  for (const auto& stage :
       consecutive_blocks(all_ranks(world_size), world_size / degrees.pipeline,
                          "pipeline size")) {
    append(sequences, sequences_of_stage(stage, degrees));
  }
  return expert_rank_lists(sequences, degrees.expert, degrees.order);
}

ExpertRankLists expert_rank_lists(const RankLists& data_groups,
                                  std::int64_t expert_size, ExpertOrder order) {
  const bool experts_first = order == ExpertOrder::kExpertThenData;
  ExpertRankLists lists;
  for (const auto& ranks : data_groups) {
    const auto num_ranks = static_cast<std::int64_t>(ranks.size());
    check_divisible(num_ranks, expert_size, "expert size");
    const auto block = experts_first ? expert_size : num_ranks / expert_size;
    auto expert =
        consecutive_blocks(ranks, static_cast<int>(block), "expert size");
    auto expert_data = columns(expert);
    if (!experts_first) std::swap(expert, expert_data);
    append(lists.expert_data, std::move(expert_data));
    append(lists.expert, std::move(expert));
  }
  return lists;
}

}  // namespace nfold
