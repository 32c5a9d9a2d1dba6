#include "nfold/mics_ranks.h"

#include "layout/rank_lists_test.h"

namespace nfold {
namespace {

TEST(MicsRankLists, ShardGroupsAreNeighboursAndReplicaGroupsStrided) {
  const auto of_4 = mics_rank_lists(all_ranks(8), 4);
  EXPECT_EQ(of_4.shard, (RankLists{{0, 1, 2, 3}, {4, 5, 6, 7}}));
  EXPECT_EQ(of_4.replica, (RankLists{{0, 4}, {1, 5}, {2, 6}, {3, 7}}));
  const auto of_2 = mics_rank_lists(all_ranks(8), 2);
  EXPECT_EQ(of_2.shard, (RankLists{{0, 1}, {2, 3}, {4, 5}, {6, 7}}));
  EXPECT_EQ(of_2.replica, (RankLists{{0, 2, 4, 6}, {1, 3, 5, 7}}));
}

TEST(MicsRankLists, OneShardGroupHasNoReplicas) {
  const auto lists = mics_rank_lists(all_ranks(4), 4);
  EXPECT_EQ(lists.shard, (RankLists{{0, 1, 2, 3}}));
  EXPECT_TRUE(lists.replica.empty());
}

TEST(MicsRankLists, SingletonShardGroupsAreAllReplicas) {
  const auto lists = mics_rank_lists(all_ranks(4), 1);
  EXPECT_EQ(lists.shard, (RankLists{{0}, {1}, {2}, {3}}));
  EXPECT_EQ(lists.replica, (RankLists{{0, 1, 2, 3}}));
}

TEST(MicsRankLists, LayOutTheRanksOfADataGroup) {
  const auto data = tensor_rank_lists(16, {.tensor = 2}).data;
  const auto lists = mics_rank_lists(data[1], 4);
  EXPECT_EQ(lists.shard, (RankLists{{1, 3, 5, 7}, {9, 11, 13, 15}}));
  EXPECT_EQ(lists.replica, (RankLists{{1, 9}, {3, 11}, {5, 13}, {7, 15}}));
}

TEST(MicsRankLists, PartitionEveryWorldAndMeetOnce) {
  for (int world_size = 1; world_size <= 32; ++world_size) {
    for (const int shard_size : divisors(world_size)) {
      const auto lists = mics_rank_lists(all_ranks(world_size), shard_size);
      EXPECT_TRUE(is_partition(lists.shard, world_size, shard_size));
      if (shard_size == world_size) continue;
      EXPECT_TRUE(
          is_partition(lists.replica, world_size, world_size / shard_size));
      EXPECT_TRUE(
          share_at_most_one_rank(lists.shard, lists.replica, world_size));
    }
  }
}

TEST(MicsRankLists, RefusesShardSizesThatDoNotDivideTheRanks) {
  EXPECT_THAT([] { mics_rank_lists(all_ranks(8), 3); },
              raises_value_error("MiCS shard size: 8 is not divisible by 3"));
  EXPECT_THAT([] { mics_rank_lists(all_ranks(4), 8); },
              raises_value_error("MiCS shard size: 4 is not divisible by 8"));
  EXPECT_THAT([] { mics_rank_lists({0, 2, 4, 6}, 3); },
              raises_value_error("4 is not divisible by 3"));
  EXPECT_THAT([] { mics_rank_lists(all_ranks(4), -1); },
              raises_value_error("MiCS shard size: expected at least 1"));
}

TEST(MicsRankLists, RefusesRanksThatDoNotAscend) {
  EXPECT_THAT([] { mics_rank_lists({0, 4, 1, 5}, 2); },
              raises_value_error("found rank 1 after rank 4"));
  EXPECT_THAT([] { mics_rank_lists({0, 1, 1, 2}, 2); },
              raises_value_error("found rank 1 after rank 1"));
  EXPECT_THAT([] { mics_rank_lists({-1, 0}, 2); },
              raises_value_error("expected ranks from 0 but found -1"));
  EXPECT_THAT([] { mics_rank_lists({}, 1); },
              raises_value_error("expected at least one rank but found none"));
}

NodeRankLists hops_of(int world_size, int shard_size, int devices_per_node) {
  return hierarchical_gather_rank_lists(
      mics_rank_lists(all_ranks(world_size), shard_size).shard,
      devices_per_node);
}

TEST(HierarchicalGatherRankLists, CutAShardGroupByNodes) {
  const auto hops = hops_of(8, 8, 4);
  EXPECT_EQ(hops.intra_node, (RankLists{{0, 1, 2, 3}, {4, 5, 6, 7}}));
  EXPECT_EQ(hops.inter_node, (RankLists{{0, 4}, {1, 5}, {2, 6}, {3, 7}}));
}

TEST(HierarchicalGatherRankLists, StayWithinAShardGroup) {
  EXPECT_EQ(mics_rank_lists(all_ranks(16), 8).replica, (RankLists{{0, 8},
                                                                  {1, 9},
                                                                  {2, 10},
                                                                  {3, 11},
                                                                  {4, 12},
                                                                  {5, 13},
                                                                  {6, 14},
                                                                  {7, 15}}));
  const auto hops = hops_of(16, 8, 4);
  EXPECT_EQ(hops.intra_node,
            (RankLists{
                {0, 1, 2, 3}, {4, 5, 6, 7}, {8, 9, 10, 11}, {12, 13, 14, 15}}));
  EXPECT_EQ(hops.inter_node, (RankLists{{0, 4},
                                        {1, 5},
                                        {2, 6},
                                        {3, 7},
                                        {8, 12},
                                        {9, 13},
                                        {10, 14},
                                        {11, 15}}));
}

TEST(HierarchicalGatherRankLists, FollowTheNodesOfADataGroup) {
  const auto data = tensor_rank_lists(8, {.tensor = 2}).data;
  const auto hops =
      hierarchical_gather_rank_lists(mics_rank_lists(data[0], 4).shard, 4);
  EXPECT_EQ(hops.intra_node, (RankLists{{0, 2}, {4, 6}}));
  EXPECT_EQ(hops.inter_node, (RankLists{{0, 4}, {2, 6}}));
}

TEST(HierarchicalGatherRankLists, PartitionEveryWorldOfFullNodes) {
  for (int world_size = 1; world_size <= 32; ++world_size) {
    for (const int shard_size : divisors(world_size)) {
      for (const int devices : divisors(shard_size)) {
        if (devices == shard_size) continue;
        const auto hops = hops_of(world_size, shard_size, devices);
        EXPECT_TRUE(is_partition(hops.intra_node, world_size, devices));
        EXPECT_TRUE(
            is_partition(hops.inter_node, world_size, shard_size / devices));
        EXPECT_TRUE(share_at_most_one_rank(hops.intra_node, hops.inter_node,
                                           world_size));
      }
    }
  }
}

TEST(HierarchicalGatherRankLists, RefuseAShardGroupWithinOneNode) {
  EXPECT_THAT(
      [] { hops_of(8, 4, 4); },
      raises_value_error("found ranks 0 to 3 on one node of 4 devices"));
  EXPECT_THAT(
      [] { hops_of(8, 2, 4); },
      raises_value_error("found ranks 0 to 1 on one node of 4 devices"));
}

TEST(HierarchicalGatherRankLists, RefusePartialNodes) {
  EXPECT_THAT([] { hops_of(12, 6, 4); },
              raises_value_error("found 4 on the node of rank 0 and 2 on that "
                                 "of rank 4"));
  EXPECT_THAT([] { hops_of(20, 10, 4); },
              raises_value_error("found 4 on the node of rank 0 and 2 on that "
                                 "of rank 8"));
}

TEST(HierarchicalGatherRankLists, RefuseBadArguments) {
  EXPECT_THAT([] { hops_of(8, 8, 0); },
              raises_value_error("devices per node: expected at least 1"));
  EXPECT_THAT([] { hierarchical_gather_rank_lists({{0, 4, 1, 5}}, 4); },
              raises_value_error("found rank 1 after rank 4"));
}

TEST(MicsRankLists, Of4096RanksAreDisjointAndComplete) {
  constexpr int kWorldSize = 4096;
  const auto lists = mics_rank_lists(all_ranks(kWorldSize), 64);
  EXPECT_TRUE(is_partition(lists.shard, kWorldSize, 64));
  EXPECT_TRUE(is_partition(lists.replica, kWorldSize, 64));
  const auto hops = hierarchical_gather_rank_lists(lists.shard, 8);
  EXPECT_TRUE(is_partition(hops.intra_node, kWorldSize, 8));
  EXPECT_TRUE(is_partition(hops.inter_node, kWorldSize, 8));
}

}  // namespace
}  // namespace nfold
