#include "nfold/quantization_groups.h"

#include <gtest/gtest.h>

#include "layout/rank_lists_test.h"

namespace nfold {
namespace {

TEST(WeightGroupCount, IsDeepSpeeds) {
  EXPECT_EQ(weight_group_count(4096), 1);
  EXPECT_EQ(weight_group_count(8000), 1);
  EXPECT_EQ(weight_group_count(16384), 4);
  EXPECT_EQ(weight_group_count(65536), 16);
  EXPECT_EQ(weight_group_count(100000), 20);
  EXPECT_EQ(weight_group_count(1048576), 256);
  EXPECT_EQ(weight_group_count(3145728), 512);
  EXPECT_EQ(weight_group_count(63352), 7919);
}

TEST(WeightGroupCount, GivesGroupsOfMultiplesOf8UpTo8000) {
  for (std::int64_t numel = 8; numel <= 100000; numel += 8) {
    const auto groups = weight_group_count(numel);
    ASSERT_EQ(numel % (8 * groups), 0) << numel;
    ASSERT_LE(numel / groups, 8000) << numel;
  }
}

TEST(WeightGroupCount, RefusesWhatCannotBeDivided) {
  for (const std::int64_t numel : {0, 1, 7, 12, 8001, -8}) {
    EXPECT_THAT([&] { weight_group_count(numel); },
                raises_value_error("multiple of 8"))
        << numel;
  }
}

TEST(GradientGroupCounts, AreDeepSpeeds) {
  EXPECT_EQ(gradient_group_counts(16, 16, 8, 4), (GradientGroupCounts{16, 4}));
  EXPECT_EQ(gradient_group_counts(64, 64, 16, 8), (GradientGroupCounts{64, 8}));
  EXPECT_EQ(gradient_group_counts(4, 4, 8, 4), (GradientGroupCounts{8, 2}));
}

TEST(GradientGroupCounts, AreNoneWhereElementsDoNotDivide) {
  EXPECT_EQ(gradient_group_counts(5, 3, 8, 4), std::nullopt);
  EXPECT_EQ(gradient_group_counts(7, 7, 2, 1), std::nullopt);
  EXPECT_EQ(gradient_group_counts(2, 5, 2, 1), std::nullopt);
  EXPECT_THAT([] { gradient_group_counts(4, 4, 6, 4); },
              raises_value_error("6 is not divisible by 4"));
}

}  // namespace
}  // namespace nfold
