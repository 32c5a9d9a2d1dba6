#include "layout/deepspeed_layout.h"

#include <c10/util/Exception.h>
#include <gtest/gtest.h>

namespace nfold {
namespace {

// {parameter, begin in it, begin in the partition, count}
using Fragments = std::vector<Fragment>;

std::vector<std::int64_t> paddings(const DeepSpeedLayout& layout) {
  std::vector<std::int64_t> result;
  for (std::int64_t rank = 0; rank < layout.num_ranks; ++rank) {
    result.push_back(deepspeed_padding(layout, rank));
  }
  return result;
}

using Numels = std::vector<std::int64_t>;

TEST(DeepSpeedLayoutTest, PartitionsCutThroughParameters) {
  const auto layout = deepspeed_layout({5, 3, 4}, 2);
  EXPECT_EQ(layout.numel(), 12);
  EXPECT_EQ(layout.partition_numel, 6);
  EXPECT_EQ(deepspeed_fragments(layout, 0),
            (Fragments{{0, 0, 0, 5}, {1, 0, 5, 1}}));
  EXPECT_EQ(deepspeed_fragments(layout, 1),
            (Fragments{{1, 1, 0, 2}, {2, 0, 2, 4}}));
  EXPECT_EQ(paddings(layout), (Numels{0, 0}));
}

TEST(DeepSpeedLayoutTest, LastRanksMayHoldOnlyPadding) {
  const auto layout = deepspeed_layout({10}, 4);
  EXPECT_EQ(layout.numel(), 16);
  EXPECT_EQ(layout.partition_numel, 4);
  EXPECT_EQ(deepspeed_fragments(layout, 2), (Fragments{{0, 8, 0, 2}}));
  EXPECT_TRUE(deepspeed_fragments(layout, 3).empty());
  EXPECT_EQ(paddings(layout), (Numels{0, 0, 2, 4}));
}

TEST(DeepSpeedLayoutTest, OneElementOverFourRanks) {
  const auto layout = deepspeed_layout({1}, 4);
  EXPECT_EQ(layout.numel(), 8);
  EXPECT_EQ(layout.partition_numel, 2);
  EXPECT_EQ(paddings(layout), (Numels{1, 2, 2, 2}));
}

TEST(DeepSpeedLayoutTest, ThreeRanks) {
  const auto layout = deepspeed_layout({7, 9}, 3);
  EXPECT_EQ(layout.numel(), 18);
  EXPECT_EQ(deepspeed_fragments(layout, 1),
            (Fragments{{0, 6, 0, 1}, {1, 0, 1, 5}}));
  EXPECT_EQ(deepspeed_fragments(layout, 2), (Fragments{{1, 5, 0, 4}}));
  EXPECT_EQ(paddings(layout), (Numels{0, 0, 2}));
}

TEST(DeepSpeedLayoutTest, TwoRanksAsMeasuredOnDeepSpeed) {
  const auto ten = deepspeed_layout({10}, 2);
  EXPECT_EQ(ten.numel(), 12);
  EXPECT_EQ(deepspeed_fragments(ten, 1), (Fragments{{0, 6, 0, 4}}));
  EXPECT_EQ(paddings(ten), (Numels{0, 2}));
  const auto one = deepspeed_layout({1}, 2);
  EXPECT_EQ(one.partition_numel, 2);
  EXPECT_EQ(paddings(one), (Numels{1, 2}));
  const auto two = deepspeed_layout({7, 9}, 2);
  EXPECT_EQ(two.partition_numel, 8);
  EXPECT_EQ(deepspeed_fragments(two, 0),
            (Fragments{{0, 0, 0, 7}, {1, 0, 7, 1}}));
  EXPECT_EQ(deepspeed_fragments(two, 1), (Fragments{{1, 1, 0, 8}}));
}

TEST(DeepSpeedLayoutTest, RoundRobinFillsBinByBin) {
  const auto layout = deepspeed_layout({3, 3, 3, 3, 3}, 2, true);
  EXPECT_EQ(layout.order, (std::vector<std::size_t>{0, 2, 4, 1, 3}));
  EXPECT_EQ(layout.numel(), 16);
  EXPECT_EQ(deepspeed_fragments(layout, 0),
            (Fragments{{0, 0, 0, 3}, {2, 0, 3, 3}, {4, 0, 6, 2}}));
  EXPECT_EQ(deepspeed_fragments(layout, 1),
            (Fragments{{4, 2, 0, 1}, {1, 0, 1, 3}, {3, 0, 4, 3}}));
  EXPECT_EQ(paddings(layout), (Numels{0, 1}));
}

TEST(DeepSpeedLayoutTest, EveryElementHasOneOwnerOnUpTo1024Ranks) {
  const Numels numels{0, 1, 2, 7, 8, 1023, 4097};
  for (std::int64_t ranks : {1, 2, 3, 5, 64, 1024}) {
    for (bool round_robin : {false, true}) {
      const auto layout = deepspeed_layout(numels, ranks, round_robin);
      Numels seen(numels.size(), 0);
      for (std::int64_t rank = 0; rank < ranks; ++rank) {
        for (const auto& fragment : deepspeed_fragments(layout, rank)) {
          EXPECT_EQ(fragment.param_begin, seen[fragment.param]);
          seen[fragment.param] += fragment.numel;
        }
      }
      EXPECT_EQ(seen, numels);
    }
  }
}

TEST(DeepSpeedLayoutTest, BadArgumentsAreRejected) {
  EXPECT_THROW(deepspeed_layout({1}, 0), c10::ValueError);
  EXPECT_THROW(deepspeed_layout({-1}, 2), c10::ValueError);
}

TEST(DeepSpeedLayoutTest, SecondaryShardsAreSeveralPrimaryOnes) {
  struct Row {
    std::int64_t numel, ranks, group, shard;
    std::vector<std::int64_t> real;
  };
  for (const Row& row :
       {Row{10, 8, 4, 4, {4, 4, 2, 0}}, Row{16, 8, 4, 4, {4, 4, 4, 4}},
        Row{3, 4, 2, 2, {2, 1}}, Row{1, 4, 2, 2, {1, 0}},
        Row{0, 4, 2, 0, {0, 0}}}) {
    std::int64_t next = 0;
    for (std::int64_t rank = 0; rank < row.group; ++rank) {
      const auto shard =
          deepspeed_secondary_shard(row.numel, row.ranks, row.group, rank);
      EXPECT_EQ(shard.numel, row.shard);
      EXPECT_EQ(shard.range.numel, row.real[static_cast<std::size_t>(rank)]);
      if (shard.range.numel > 0) EXPECT_EQ(shard.range.begin, next);
      next += shard.range.numel;
    }
    EXPECT_EQ(next, row.numel);
  }
  EXPECT_THROW(deepspeed_secondary_shard(8, 8, 3, 0), c10::ValueError);
  EXPECT_THROW(deepspeed_secondary_shard(8, 8, 4, 4), c10::ValueError);
}

}  // namespace
}  // namespace nfold
