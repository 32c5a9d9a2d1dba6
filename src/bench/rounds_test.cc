#include "bench/rounds.h"

#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <set>

namespace nfold::bench {
namespace {

TEST(SpreadTest, HasTheMiddleOfOddAndEvenNumbersOfValues) {
  const Spread odd = spread_of({3, 1, 10});
  EXPECT_EQ(odd.median, 3);
  EXPECT_EQ(odd.min, 1);
  EXPECT_EQ(odd.max, 10);
  EXPECT_EQ(spread_of({4, 1, 2, 100}).median, 3);
  EXPECT_THROW(spread_of({}), c10::ValueError);
}

TEST(SpreadTest, RatesAreOfEachValue) {
  const Spread rate = rate_of(12, {2, 3, 6});
  EXPECT_EQ(rate.median, 4);
  EXPECT_EQ(rate.min, 2);
  EXPECT_EQ(rate.max, 6);
}

TEST(SpreadTest, RatiosAreThoseOfARound) {
  // Three times as slow in the second round, both of them.
  const Spread ratio = ratio_of({2, 6}, {1, 3});
  EXPECT_EQ(ratio.min, 2);
  EXPECT_EQ(ratio.max, 2);
  EXPECT_THROW(ratio_of({1}, {1, 2}), c10::ValueError);
}

TEST(RoundsTest, BeginWithDifferentItems) {
  for (std::size_t round = 0; round < 5; ++round) {
    std::set<std::size_t> items;
    for (std::size_t turn = 0; turn < 3; ++turn) {
      items.insert(item_at(round, turn, 3));
    }
    EXPECT_EQ(items.size(), 3u);
    EXPECT_EQ(item_at(round, 0, 3), round % 3);
  }
}

TEST(RoundsTest, RunOnceMoreThanTheyAreTimed) {
  int num_first = 0;
  int num_second = 0;
  const auto seconds =
      time_in_turns({[&] { ++num_first; }, [&] { ++num_second; }}, 3);
  EXPECT_EQ(num_first, 4);
  EXPECT_EQ(num_second, 4);
  ASSERT_EQ(seconds.size(), 2u);
  EXPECT_EQ(seconds[1].size(), 3u);
  EXPECT_GE(seconds[0][0], 0);
}

}  // namespace
}  // namespace nfold::bench
