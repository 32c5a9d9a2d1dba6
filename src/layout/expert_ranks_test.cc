#include "nfold/expert_ranks.h"

#include <algorithm>
#include <cstddef>
#include <set>
#include <vector>

#include "layout/rank_lists_test.h"

namespace nfold {
namespace {

constexpr auto kDataThenExpert = ExpertOrder::kDataThenExpert;
constexpr auto kSplit = ExpertPlacement::kSplit;
constexpr auto kWholeByLane = ExpertPlacement::kWholeByLane;
constexpr auto kWholeConsecutive = ExpertPlacement::kWholeConsecutive;

// With every rank's number `offset` higher: the lists of the next stage.
RankLists moved(RankLists lists, int offset) {
  for (auto& list : lists) {
    for (auto& rank : list) rank += offset;
  }
  return lists;
}

RankLists joined(RankLists first, const RankLists& second) {
  append(first, second);
  return first;
}

TEST(ExpertRankLists, ExpertThenDataMakesExpertGroupsNeighbours) {
  const auto of_2 = expert_rank_lists(8, {.expert = 2});
  EXPECT_EQ(of_2.expert_data, (RankLists{{0, 2, 4, 6}, {1, 3, 5, 7}}));
  EXPECT_EQ(of_2.expert, (RankLists{{0, 1}, {2, 3}, {4, 5}, {6, 7}}));
  const auto of_4 = expert_rank_lists(8, {.expert = 4});
  EXPECT_EQ(of_4.expert_data, (RankLists{{0, 4}, {1, 5}, {2, 6}, {3, 7}}));
  EXPECT_EQ(of_4.expert, (RankLists{{0, 1, 2, 3}, {4, 5, 6, 7}}));
}

TEST(ExpertRankLists, WithoutExpertParallelismEveryRankHasAllExperts) {
  const auto lists = expert_rank_lists(4, {});
  EXPECT_EQ(lists.expert_data, (RankLists{{0, 1, 2, 3}}));
  EXPECT_EQ(lists.expert, (RankLists{{0}, {1}, {2}, {3}}));
}

TEST(ExpertRankLists, DataThenExpertMakesExpertDataGroupsNeighbours) {
  const auto of_2 =
      expert_rank_lists(8, {.expert = 2, .order = kDataThenExpert});
  EXPECT_EQ(of_2.expert_data, (RankLists{{0, 1, 2, 3}, {4, 5, 6, 7}}));
  EXPECT_EQ(of_2.expert, (RankLists{{0, 4}, {1, 5}, {2, 6}, {3, 7}}));
  const auto of_4 =
      expert_rank_lists(8, {.expert = 4, .order = kDataThenExpert});
  EXPECT_EQ(of_4.expert_data, (RankLists{{0, 1}, {2, 3}, {4, 5}, {6, 7}}));
  EXPECT_EQ(of_4.expert, (RankLists{{0, 2, 4, 6}, {1, 3, 5, 7}}));
}

TEST(ExpertRankLists, OfGivenGroupsStayWithinThemInTheirOrder) {
  const RankLists groups = {{0, 2, 4, 6}, {7, 5, 3, 1}};
  const auto lists = expert_rank_lists(groups, 2, ExpertOrder::kExpertThenData);
  EXPECT_EQ(lists.expert_data, (RankLists{{0, 4}, {2, 6}, {7, 3}, {5, 1}}));
  EXPECT_EQ(lists.expert, (RankLists{{0, 2}, {4, 6}, {7, 5}, {3, 1}}));
  const auto swapped = expert_rank_lists(groups, 2, kDataThenExpert);
  EXPECT_EQ(swapped.expert, lists.expert_data);
  EXPECT_EQ(swapped.expert_data, lists.expert);
  EXPECT_THAT(
      [] { expert_rank_lists({{0, 1}, {2, 3, 4}}, 2, kDataThenExpert); },
      raises_value_error("3 is not divisible by 2"));
}

TEST(ExpertRankLists, StayWithinAPipelineStage) {
  const auto lists = expert_rank_lists(8, {.expert = 2, .pipeline = 2});
  EXPECT_EQ(lists.expert_data, (RankLists{{0, 2}, {1, 3}, {4, 6}, {5, 7}}));
  EXPECT_EQ(lists.expert, (RankLists{{0, 1}, {2, 3}, {4, 5}, {6, 7}}));
}

TEST(ExpertRankLists, WholeExpertsByLane) {
  const auto of_2 = expert_rank_lists(
      8, {.expert = 2, .model = 2, .placement = kWholeByLane});
  EXPECT_EQ(of_2.expert, (RankLists{{0, 2}, {4, 6}, {1, 3}, {5, 7}}));
  EXPECT_EQ(of_2.expert_data, (RankLists{{0, 4, 1, 5}, {2, 6, 3, 7}}));
  const auto of_4 = expert_rank_lists(
      8, {.expert = 4, .model = 2, .placement = kWholeByLane});
  EXPECT_EQ(of_4.expert, (RankLists{{0, 2, 4, 6}, {1, 3, 5, 7}}));
  EXPECT_EQ(of_4.expert_data, (RankLists{{0, 1}, {2, 3}, {4, 5}, {6, 7}}));
}

TEST(ExpertRankLists, WholeExpertsOnMoreRanksThanALaneHas) {
  const auto lists = expert_rank_lists(
      8, {.expert = 4, .model = 4, .placement = kWholeByLane});
  EXPECT_EQ(lists.expert, (RankLists{{0, 4, 1, 5}, {2, 6, 3, 7}}));
  EXPECT_EQ(lists.expert_data, (RankLists{{0, 2}, {4, 6}, {1, 3}, {5, 7}}));
}

TEST(ExpertRankLists, WholeExpertsByLaneStayWithinAPipelineStage) {
  const auto lists = expert_rank_lists(
      16, {.expert = 2, .pipeline = 2, .model = 2, .placement = kWholeByLane});
  const RankLists expert{{0, 2}, {4, 6}, {1, 3}, {5, 7}};
  const RankLists expert_data{{0, 4, 1, 5}, {2, 6, 3, 7}};
  EXPECT_EQ(lists.expert, joined(expert, moved(expert, 8)));
  EXPECT_EQ(lists.expert_data, joined(expert_data, moved(expert_data, 8)));
}

TEST(ExpertRankLists, WholeExpertsConsecutive) {
  const auto lists = expert_rank_lists(
      8, {.expert = 2, .model = 2, .placement = kWholeConsecutive});
  EXPECT_EQ(lists.expert, (RankLists{{0, 1}, {2, 3}, {4, 5}, {6, 7}}));
  EXPECT_EQ(lists.expert_data, (RankLists{{0, 2, 4, 6}, {1, 3, 5, 7}}));
}

TEST(ExpertRankLists, PlacementHasNoEffectWithoutModelGroups) {
  for (const auto order : {ExpertOrder::kExpertThenData, kDataThenExpert}) {
    const auto expected = expert_rank_lists(8, {.expert = 2, .order = order});
    for (const auto placement : {kWholeByLane, kWholeConsecutive}) {
      const auto lists = expert_rank_lists(
          8, {.expert = 2, .placement = placement, .order = order});
      EXPECT_EQ(lists.expert, expected.expert);
      EXPECT_EQ(lists.expert_data, expected.expert_data);
    }
  }
}

TEST(SplitExpertRankLists, StayWithinALane) {
  const auto lists = expert_rank_lists(16, {.expert = 4, .model = 2});
  EXPECT_EQ(lists.expert,
            (RankLists{
                {0, 2, 4, 6}, {8, 10, 12, 14}, {1, 3, 5, 7}, {9, 11, 13, 15}}));
  EXPECT_EQ(lists.expert_data, (RankLists{{0, 8},
                                          {2, 10},
                                          {4, 12},
                                          {6, 14},
                                          {1, 9},
                                          {3, 11},
                                          {5, 13},
                                          {7, 15}}));
}

TEST(SplitExpertRankLists, DataThenExpertStayWithinALane) {
  const auto lists = expert_rank_lists(
      16, {.expert = 4, .model = 2, .order = kDataThenExpert});
  EXPECT_EQ(lists.expert,
            (RankLists{
                {0, 4, 8, 12}, {2, 6, 10, 14}, {1, 5, 9, 13}, {3, 7, 11, 15}}));
  EXPECT_EQ(lists.expert_data, (RankLists{{0, 2},
                                          {4, 6},
                                          {8, 10},
                                          {12, 14},
                                          {1, 3},
                                          {5, 7},
                                          {9, 11},
                                          {13, 15}}));
}

TEST(SplitExpertRankLists, OrderExchangesEqualSizes) {
  const RankLists neighbours{{0, 2}, {4, 6}, {1, 3}, {5, 7}};
  const RankLists strided{{0, 4}, {2, 6}, {1, 5}, {3, 7}};
  const auto expert_first = expert_rank_lists(8, {.expert = 2, .model = 2});
  EXPECT_EQ(expert_first.expert, neighbours);
  EXPECT_EQ(expert_first.expert_data, strided);
  const auto data_first =
      expert_rank_lists(8, {.expert = 2, .model = 2, .order = kDataThenExpert});
  EXPECT_EQ(data_first.expert, strided);
  EXPECT_EQ(data_first.expert_data, neighbours);
}

TEST(SplitExpertRankLists, StayWithinAPipelineStage) {
  const auto lists =
      expert_rank_lists(16, {.expert = 2, .pipeline = 2, .model = 2});
  EXPECT_EQ(lists.expert, (RankLists{{0, 2},
                                     {4, 6},
                                     {1, 3},
                                     {5, 7},
                                     {8, 10},
                                     {12, 14},
                                     {9, 11},
                                     {13, 15}}));
  EXPECT_EQ(lists.expert_data, (RankLists{{0, 4},
                                          {2, 6},
                                          {1, 5},
                                          {3, 7},
                                          {8, 12},
                                          {10, 14},
                                          {9, 13},
                                          {11, 15}}));
}

TEST(SplitExpertRankLists, DataThenExpertStayWithinAPipelineStage) {
  const auto lists = expert_rank_lists(
      32, {.expert = 4, .pipeline = 2, .model = 2, .order = kDataThenExpert});
  const RankLists expert{
      {0, 4, 8, 12}, {2, 6, 10, 14}, {1, 5, 9, 13}, {3, 7, 11, 15}};
  const RankLists expert_data{{0, 2}, {4, 6}, {8, 10}, {12, 14},
                              {1, 3}, {5, 7}, {9, 11}, {13, 15}};
  EXPECT_EQ(lists.expert, joined(expert, moved(expert, 16)));
  EXPECT_EQ(lists.expert_data, joined(expert_data, moved(expert_data, 16)));
}

// Of one sequence that is cut into groups.
int ranks_that_share_experts(int world_size, const ExpertDegrees& degrees) {
  const int stage = world_size / degrees.pipeline;
  return degrees.placement == kSplit ? stage / degrees.model : stage;
}

// All that are allowed in a world, of every size.
std::vector<ExpertDegrees> all_degrees(int world_size) {
  std::vector<ExpertDegrees> all;
  for (const int pipeline : divisors(world_size)) {
    for (const int model : divisors(world_size / pipeline)) {
      for (const auto placement : {kSplit, kWholeByLane, kWholeConsecutive}) {
        ExpertDegrees degrees{
            .pipeline = pipeline, .model = model, .placement = placement};
        for (const int expert :
             divisors(ranks_that_share_experts(world_size, degrees))) {
          degrees.expert = expert;
          all.push_back(degrees);
          if (model == 1 || placement == kSplit) {
            all.push_back(degrees);
            all.back().order = kDataThenExpert;
          }
        }
      }
    }
  }
  return all;
}

void expect_within_stage_and_lane(const RankList& list, int stage_size,
                                  const ExpertDegrees& degrees) {
  for (const int rank : list) {
    EXPECT_EQ(rank / stage_size, list.front() / stage_size);
    if (degrees.placement == kSplit) {
      EXPECT_EQ(rank % degrees.model, list.front() % degrees.model);
    }
  }
}

// A rank's place in its expert group says which experts it holds.
void expect_same_experts(const RankList& expert_data_list,
                         const RankLists& expert) {
  std::set<std::ptrdiff_t> places;
  for (const int rank : expert_data_list) {
    const RankList group = rank_list_of(expert, rank);
    places.insert(std::find(group.begin(), group.end(), rank) - group.begin());
  }
  EXPECT_EQ(places.size(), 1);
}

void expect_sound(int world_size, const ExpertDegrees& degrees) {
  const auto lists = expert_rank_lists(world_size, degrees);
  const int num_ranks = ranks_that_share_experts(world_size, degrees);
  const int stage_size = world_size / degrees.pipeline;
  EXPECT_TRUE(is_partition(lists.expert, world_size, degrees.expert));
  EXPECT_TRUE(
      is_partition(lists.expert_data, world_size, num_ranks / degrees.expert));
  EXPECT_TRUE(
      share_at_most_one_rank(lists.expert, lists.expert_data, world_size));
  for (const auto& list : lists.expert) {
    expect_within_stage_and_lane(list, stage_size, degrees);
  }
  for (const auto& list : lists.expert_data) {
    expect_within_stage_and_lane(list, stage_size, degrees);
    expect_same_experts(list, lists.expert);
  }
}

TEST(ExpertRankLists,
     PartitionEveryWorldAndExpertDataGroupsHoldTheSameExperts) {
  for (int world_size = 1; world_size <= 32; ++world_size) {
    for (const auto& degrees : all_degrees(world_size)) {
      expect_sound(world_size, degrees);
    }
  }
}

TEST(ExpertRankLists, Of4096RanksAreDisjointAndComplete) {
  for (const auto placement : {kSplit, kWholeByLane, kWholeConsecutive}) {
    expect_sound(
        4096,
        {.expert = 16, .pipeline = 4, .model = 8, .placement = placement});
  }
}

TEST(ExpertRankLists, SourceRankIsRank0OfTheRealGroup) {
  const auto strided =
      expert_rank_lists(8, {.expert = 2, .order = kDataThenExpert});
  EXPECT_EQ(source_rank(strided.expert, 7), 3);  // not 6
  EXPECT_EQ(source_rank(strided.expert_data, 7), 4);
  const auto by_lane = expert_rank_lists(
      8, {.expert = 2, .model = 2, .placement = kWholeByLane});
  EXPECT_EQ(source_rank(by_lane.expert, 7), 5);
  EXPECT_EQ(source_rank(by_lane.expert_data, 7), 2);
}

TEST(ExpertRankLists, RefusesSizesThatDoNotDivide) {
  EXPECT_THAT(
      [] { expert_rank_lists(8, {.expert = 3}); },
      raises_value_error("expert size: 8 is not divisible by 3; choose"));
  EXPECT_THAT([] { expert_rank_lists(8, {.expert = 2, .model = 3}); },
              raises_value_error("8 is not divisible by 3"));
  EXPECT_THAT([] { expert_rank_lists(8, {.expert = 3, .model = 2}); },
              raises_value_error("expert size: 4 is not divisible by 3"));
  EXPECT_THAT([] { expert_rank_lists(8, {.expert = 8, .pipeline = 2}); },
              raises_value_error("expert size: 4 is not divisible by 8"));
  EXPECT_THAT([] { expert_rank_lists(8, {.pipeline = 3}); },
              raises_value_error("8 is not divisible by 3"));
  EXPECT_THAT([] { expert_rank_lists(8, {.pipeline = 4, .model = 4}); },
              raises_value_error("model size * pipeline size: 8 is not "
                                 "divisible by 16"));
  EXPECT_THAT(
      [] {
        expert_rank_lists(8,
                          {.expert = 3, .model = 2, .placement = kWholeByLane});
      },
      raises_value_error("expert size: 8 is not divisible by 3"));
}

TEST(ExpertRankLists, RefusesSizesBelow1) {
  EXPECT_THAT([] { expert_rank_lists(0, {}); },
              raises_value_error("world size: expected at least 1"));
  EXPECT_THAT([] { expert_rank_lists(8, {.expert = 0}); },
              raises_value_error("expert size: expected at least 1"));
  EXPECT_THAT([] { expert_rank_lists(8, {.pipeline = -2, .model = -2}); },
              raises_value_error("model size: expected at least 1"));
  EXPECT_THAT([] { expert_rank_lists(8, {.pipeline = 0}); },
              raises_value_error("pipeline size: expected at least 1"));
}

TEST(ExpertRankLists, DataThenExpertNeedsSplitExpertsInModelGroups) {
  for (const auto placement : {kWholeByLane, kWholeConsecutive}) {
    EXPECT_THAT(
        [placement] {
          expert_rank_lists(8, {.expert = 2,
                                .model = 2,
                                .placement = placement,
                                .order = kDataThenExpert});
        },
        testing::ThrowsMessage<c10::NotImplementedError>(
            testing::HasSubstr("use expert before data")));
  }
}

}  // namespace
}  // namespace nfold
