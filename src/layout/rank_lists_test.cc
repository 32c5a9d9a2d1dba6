#include "nfold/rank_lists.h"

#include <limits>

#include "layout/rank_lists_test.h"

namespace nfold {
namespace {

TEST(MeshRankLists, LastAxisIsNeighbours) {
  EXPECT_EQ(mesh_rank_lists(4, {{"data", 2}, {"sequence", 2}}),
            (std::vector<RankLists>{{{0, 2}, {1, 3}}, {{0, 1}, {2, 3}}}));
  EXPECT_EQ(mesh_rank_lists(8, {{"data", 2}, {"sequence", 4}}),
            (std::vector<RankLists>{{{0, 4}, {1, 5}, {2, 6}, {3, 7}},
                                    {{0, 1, 2, 3}, {4, 5, 6, 7}}}));
}

TEST(MeshRankLists, ThreeAxesAreRowMajor) {
  EXPECT_EQ(mesh_rank_lists(8, {{"pipeline", 2}, {"data", 2}, {"tensor", 2}}),
            (std::vector<RankLists>{{{0, 4}, {1, 5}, {2, 6}, {3, 7}},
                                    {{0, 2}, {1, 3}, {4, 6}, {5, 7}},
                                    {{0, 1}, {2, 3}, {4, 5}, {6, 7}}}));
}

TEST(MeshRankLists, RowOfARankIsItsDataGroup) {
  const auto lists = mesh_rank_lists(4, {{"data", 2}, {"sequence", 2}});
  EXPECT_EQ(rank_list_of(lists[0], 3), (RankList{1, 3}));
}

TEST(MeshRankLists, EveryAxisPartitionsEveryWorld) {
  for (int world_size = 1; world_size <= 32; ++world_size) {
    for (const int outer : divisors(world_size)) {
      for (const int middle : divisors(world_size / outer)) {
        const int inner = world_size / outer / middle;
        const auto lists = mesh_rank_lists(
            world_size, {{"a", outer}, {"b", middle}, {"c", inner}});
        ASSERT_EQ(lists.size(), 3);
        EXPECT_TRUE(is_partition(lists[0], world_size, outer));
        EXPECT_TRUE(is_partition(lists[1], world_size, middle));
        EXPECT_TRUE(is_partition(lists[2], world_size, inner));
        EXPECT_TRUE(share_at_most_one_rank(lists[0], lists[1], world_size));
        EXPECT_TRUE(share_at_most_one_rank(lists[1], lists[2], world_size));
      }
    }
  }
}

TEST(MeshRankLists, RefusesSizesThatAreNotTheWorld) {
  EXPECT_THAT([] { mesh_rank_lists(8, {{"data", 3}, {"sequence", 2}}); },
              raises_value_error("world size 8 but found data (3) * sequence "
                                 "(2)"));
  EXPECT_THAT([] { mesh_rank_lists(8, {{"data", 2}, {"sequence", 2}}); },
              raises_value_error("data (2) * sequence (2)"));
  EXPECT_THAT([] { mesh_rank_lists(8, {{"data", 0}, {"sequence", 2}}); },
              raises_value_error("data: expected at least 1 but found 0"));
  EXPECT_THAT([] { mesh_rank_lists(8, {}); }, raises_value_error("no axes"));
  EXPECT_THAT(
      [] { mesh_rank_lists(0, {{"data", 1}}); },
      raises_value_error("world size: expected at least 1 but found 0"));
}

TEST(MeshRankLists, HugeSizesDoNotOverflow) {
  const int huge = std::numeric_limits<int>::max();
  EXPECT_THROW(mesh_rank_lists(8, {{"a", huge}, {"b", huge}, {"c", huge}}),
               c10::ValueError);
}

TEST(TensorRankLists, TensorGroupsAreNeighboursAndDataGroupsStrided) {
  const auto lists = tensor_rank_lists(8, {.tensor = 2});
  EXPECT_EQ(lists.data, (RankLists{{0, 2, 4, 6}, {1, 3, 5, 7}}));
  EXPECT_EQ(lists.tensor, (RankLists{{0, 1}, {2, 3}, {4, 5}, {6, 7}}));
}

TEST(TensorRankLists, DataSizeMayBeGiven) {
  EXPECT_EQ(tensor_rank_lists(8, {.tensor = 2, .data = 4}).data,
            tensor_rank_lists(8, {.tensor = 2}).data);
}

TEST(TensorRankLists, PartitionEveryWorldAndMeetOnce) {
  for (int world_size = 1; world_size <= 32; ++world_size) {
    for (const int tensor : divisors(world_size)) {
      const auto lists = tensor_rank_lists(world_size, {.tensor = tensor});
      EXPECT_TRUE(is_partition(lists.tensor, world_size, tensor));
      EXPECT_TRUE(is_partition(lists.data, world_size, world_size / tensor));
      EXPECT_TRUE(share_at_most_one_rank(lists.tensor, lists.data, world_size));
    }
  }
}

TEST(TensorRankLists, RefusesSizesThatDoNotMakeTheWorld) {
  EXPECT_THAT(
      [] { tensor_rank_lists(8, {.tensor = 3}); },
      raises_value_error("tensor size: 8 is not divisible by 3; choose"));
  EXPECT_THAT([] { tensor_rank_lists(8, {.tensor = 16}); },
              raises_value_error("8 is not divisible by 16"));
  EXPECT_THAT(
      [] { tensor_rank_lists(8, {.tensor = 2, .data = 3}); },
      raises_value_error("world size 8 but found data size (3) * tensor "
                         "size (2)"));
  EXPECT_THAT([] { tensor_rank_lists(8, {.tensor = 0}); },
              raises_value_error("tensor size: expected at least 1"));
  EXPECT_THAT([] { tensor_rank_lists(8, {.tensor = 2, .data = -4}); },
              raises_value_error("data size: expected at least 1"));
  EXPECT_THAT([] { tensor_rank_lists(-8, {.tensor = 2}); },
              raises_value_error("world size: expected at least 1"));
}

TEST(ClampedTensorRankLists, SizeBeyondTheWorldMeansTheWorld) {
  const auto lists = clamped_tensor_rank_lists(8, 16);
  EXPECT_EQ(lists.data, (RankLists{{0}, {1}, {2}, {3}, {4}, {5}, {6}, {7}}));
  EXPECT_EQ(lists.tensor, (RankLists{{0, 1, 2, 3, 4, 5, 6, 7}}));
}

TEST(ClampedTensorRankLists, SizeWithinTheWorldMustDivideIt) {
  EXPECT_EQ(clamped_tensor_rank_lists(8, 2).data,
            (RankLists{{0, 2, 4, 6}, {1, 3, 5, 7}}));
  EXPECT_THAT([] { clamped_tensor_rank_lists(8, 3); },
              raises_value_error("8 is not divisible by 3"));
}

TEST(SequenceRankLists, NeighboursAndOneListOfAll) {
  const auto lists = sequence_rank_lists(8, 2);
  EXPECT_EQ(lists.sequence, (RankLists{{0, 1}, {2, 3}, {4, 5}, {6, 7}}));
  EXPECT_EQ(lists.sequence_data, (RankLists{{0, 1, 2, 3, 4, 5, 6, 7}}));
}

TEST(SequenceRankLists, PartitionEveryWorld) {
  for (int world_size = 2; world_size <= 32; ++world_size) {
    for (const int size : divisors(world_size)) {
      if (size == 1) continue;
      const auto lists = sequence_rank_lists(world_size, size);
      EXPECT_TRUE(is_partition(lists.sequence, world_size, size));
      EXPECT_TRUE(is_partition(lists.sequence_data, world_size, world_size));
    }
  }
}

TEST(SequenceRankLists, RefusesSizesBelow2BeyondTheWorldAndThatDoNotDivideIt) {
  EXPECT_THAT([] { sequence_rank_lists(8, 1); },
              raises_value_error("expected at least 2 but found 1"));
  EXPECT_THAT([] { sequence_rank_lists(4, 8); },
              raises_value_error("4 is not divisible by 8"));
  EXPECT_THAT([] { sequence_rank_lists(8, 3); },
              raises_value_error("8 is not divisible by 3"));
}

TEST(SecondaryShardRankLists, NeighboursAndAtMostTheWorld) {
  EXPECT_EQ(secondary_shard_rank_lists(all_ranks(8), 4),
            (RankLists{{0, 1, 2, 3}, {4, 5, 6, 7}}));
  EXPECT_EQ(secondary_shard_rank_lists(all_ranks(16), 2),
            (RankLists{{0, 1},
                       {2, 3},
                       {4, 5},
                       {6, 7},
                       {8, 9},
                       {10, 11},
                       {12, 13},
                       {14, 15}}));
  EXPECT_EQ(secondary_shard_rank_lists(all_ranks(8), 16),
            (RankLists{{0, 1, 2, 3, 4, 5, 6, 7}}));
  EXPECT_EQ(secondary_shard_rank_lists(all_ranks(2), 1'000'000'000'000),
            (RankLists{{0, 1}}));
  EXPECT_EQ(secondary_shard_rank_lists({1, 3, 5, 7}, 2),
            (RankLists{{1, 3}, {5, 7}}));
}

TEST(SecondaryShardRankLists, RefusesSizesThatDoNotDivide) {
  EXPECT_THAT([] { secondary_shard_rank_lists(all_ranks(8), 3); },
              raises_value_error("8 is not divisible by 3"));
  EXPECT_THAT([] { secondary_shard_rank_lists(all_ranks(8), 0); },
              raises_value_error("expected at least 1 but found 0"));
}

TEST(ParameterParallelRankLists, NeighboursAndByDefaultTheWorld) {
  EXPECT_EQ(parameter_parallel_rank_lists(4), (RankLists{{0, 1, 2, 3}}));
  EXPECT_EQ(parameter_parallel_rank_lists(4, 2), (RankLists{{0, 1}, {2, 3}}));
}

TEST(ParameterParallelRankLists, RefusesSizesThatDoNotDivide) {
  EXPECT_THAT([] { parameter_parallel_rank_lists(8, 3); },
              raises_value_error("8 is not divisible by 3"));
  EXPECT_THAT([] { parameter_parallel_rank_lists(8, 16); },
              raises_value_error("8 is not divisible by 16"));
}

TEST(NeighbourRankLists, PartitionEveryWorld) {
  for (int world_size = 1; world_size <= 32; ++world_size) {
    for (const int size : divisors(world_size)) {
      EXPECT_TRUE(
          is_partition(secondary_shard_rank_lists(all_ranks(world_size), size),
                       world_size, size));
      EXPECT_TRUE(is_partition(parameter_parallel_rank_lists(world_size, size),
                               world_size, size));
    }
  }
}

TEST(AllToAllRankLists, WithinNodesThenAcross) {
  const auto lists = all_to_all_rank_lists(8, 4);
  EXPECT_EQ(lists.intra_node, (RankLists{{0, 1, 2, 3}, {4, 5, 6, 7}}));
  EXPECT_EQ(lists.inter_node, (RankLists{{0, 4}, {1, 5}, {2, 6}, {3, 7}}));
  EXPECT_EQ(all_to_all_rank_lists(16, 8).inter_node, (RankLists{{0, 8},
                                                                {1, 9},
                                                                {2, 10},
                                                                {3, 11},
                                                                {4, 12},
                                                                {5, 13},
                                                                {6, 14},
                                                                {7, 15}}));
}

TEST(AllToAllRankLists, OneNodeHasOneListAndNoneAcross) {
  for (const int devices_per_node : {4, 8}) {
    const auto lists = all_to_all_rank_lists(4, devices_per_node);
    EXPECT_EQ(lists.intra_node, (RankLists{{0, 1, 2, 3}}));
    EXPECT_TRUE(lists.inter_node.empty());
  }
}

TEST(AllToAllRankLists, ARankFindsItsListsByNodeAndPlace) {
  const auto lists = all_to_all_rank_lists(12, 4);
  for (int rank = 0; rank < 12; ++rank) {
    EXPECT_EQ(rank_list_of(lists.intra_node, rank), lists.intra_node[rank / 4]);
    EXPECT_EQ(rank_list_of(lists.inter_node, rank), lists.inter_node[rank % 4]);
  }
}

TEST(AllToAllRankLists, PartitionEveryWorldOfFullNodes) {
  for (int world_size = 1; world_size <= 32; ++world_size) {
    for (const int devices : divisors(world_size)) {
      if (devices == world_size) continue;
      const auto lists = all_to_all_rank_lists(world_size, devices);
      EXPECT_TRUE(is_partition(lists.intra_node, world_size, devices));
      EXPECT_TRUE(
          is_partition(lists.inter_node, world_size, world_size / devices));
      EXPECT_TRUE(share_at_most_one_rank(lists.intra_node, lists.inter_node,
                                         world_size));
    }
  }
}

TEST(AllToAllRankLists, RefusesNodesThatAreNotFull) {
  EXPECT_THAT([] { all_to_all_rank_lists(6, 4); },
              raises_value_error("6 is not divisible by 4"));
  EXPECT_THAT([] { all_to_all_rank_lists(10, 4); },
              raises_value_error("10 is not divisible by 4"));
  EXPECT_THAT([] { all_to_all_rank_lists(8, 0); },
              raises_value_error("devices per node: expected at least 1"));
}

TEST(AllToAllRankLists, OfAGroupHaveItsRanksOfEachNode) {
  const auto lists = all_to_all_rank_lists({1, 3, 5, 7}, 4);
  EXPECT_EQ(lists.intra_node, (RankLists{{1, 3}, {5, 7}}));
  EXPECT_EQ(lists.inter_node, (RankLists{{1, 5}, {3, 7}}));
  EXPECT_EQ(all_to_all_rank_lists({4, 5}, 4).intra_node, (RankLists{{4, 5}}));
  EXPECT_TRUE(all_to_all_rank_lists({4, 5}, 4).inter_node.empty());
  EXPECT_THAT([] { all_to_all_rank_lists({0, 2, 4}, 4); },
              raises_value_error("found 2 on the node of rank 0 and 1 on that "
                                 "of rank 4"));
}

TEST(SourceRank, IsRank0OfTheGroup) {
  const auto lists = tensor_rank_lists(8, {.tensor = 2});
  for (int rank = 0; rank < 8; ++rank) {
    EXPECT_EQ(source_rank(lists.tensor, rank), rank / 2 * 2);
    EXPECT_EQ(source_rank(lists.data, rank), rank % 2);
  }
  EXPECT_EQ(source_rank(sequence_rank_lists(8, 2).sequence_data, 5), 0);
}

TEST(SourceRank, RefusesARankThatIsInNoList) {
  EXPECT_THAT([] { source_rank({{0, 1}, {2, 3}}, 4); },
              raises_value_error("expected rank 4 in one of 2 rank lists"));
}

TEST(RankListColumns, NeedListsOfEqualLengths) {
  EXPECT_EQ(columns({{0, 1}, {2, 3}}), (RankLists{{0, 2}, {1, 3}}));
  EXPECT_TRUE(columns({}).empty());
  EXPECT_THROW(columns({{0, 1}, {2}}), c10::Error);
}

TEST(RankLists, Of4096RanksAreDisjointAndComplete) {
  constexpr int kWorldSize = 4096;
  const auto tensor = tensor_rank_lists(kWorldSize, {.tensor = 8});
  EXPECT_TRUE(is_partition(tensor.data, kWorldSize, 512));
  EXPECT_TRUE(is_partition(tensor.tensor, kWorldSize, 8));
  const auto sequence = sequence_rank_lists(kWorldSize, 16);
  EXPECT_TRUE(is_partition(sequence.sequence, kWorldSize, 16));
  EXPECT_TRUE(is_partition(sequence.sequence_data, kWorldSize, kWorldSize));
  EXPECT_TRUE(is_partition(secondary_shard_rank_lists(all_ranks(kWorldSize), 8),
                           kWorldSize, 8));
  const auto nodes = all_to_all_rank_lists(kWorldSize, 8);
  EXPECT_TRUE(is_partition(nodes.intra_node, kWorldSize, 8));
  EXPECT_TRUE(is_partition(nodes.inter_node, kWorldSize, 512));
}

}  // namespace
}  // namespace nfold
