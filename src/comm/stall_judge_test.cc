#include "comm/stall_judge.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <utility>
#include <vector>

namespace nfold {
namespace {

using std::chrono::milliseconds;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;

// Ranks that wait for each other; each look is later by a second, and each rank
// has said it again.
class StallJudgeTest : public ::testing::Test {
 protected:
  StallJudgeTest() {
    for (int rank = 0; rank < 2; ++rank) {
      RankStatus status{.rank = rank};
      status.waits = {
          {.id = 10, .group = rank, .group_name = "g", .what = "barrier #0"}};
      status.num_entered = {{rank, 1}, {1 - rank, 0}};
      statuses_.push_back(status);
    }
  }

  std::optional<StallVerdict> look(milliseconds later = milliseconds(1000)) {
    now_ += later;
    for (auto& status : statuses_) ++status.beat;
    return judge_.look(statuses_, now_);
  }

  StallJudge judge_{milliseconds(2000)};
  StallJudge::Clock::time_point now_{};
  std::vector<RankStatus> statuses_;
};

TEST_F(StallJudgeTest, NeedsTheSameStateTwice) {
  EXPECT_FALSE(look());
  EXPECT_FALSE(look());
  const auto verdict = look();
  ASSERT_TRUE(verdict);
  EXPECT_THAT(verdict->waits, ElementsAre(Pair(0, 10), Pair(1, 10)));
  EXPECT_THAT(verdict->text, HasSubstr("rank 1 has waited"));
}

TEST_F(StallJudgeTest, SaysItOnce) {
  look();
  EXPECT_TRUE(look(milliseconds(2000)));
  EXPECT_FALSE(look());
  EXPECT_FALSE(look(milliseconds(9000)));
}

TEST_F(StallJudgeTest, BeginsAnewWhenARankHasGoneOn) {
  look();
  statuses_[0].waits[0].id = 11;
  EXPECT_FALSE(look(milliseconds(2000)));
  EXPECT_FALSE(look());
  EXPECT_TRUE(look());
}

TEST_F(StallJudgeTest, DoesNotBelieveARankThatSaysNothingMore) {
  look();
  const auto old = statuses_[0];
  now_ += milliseconds(60000);
  for (int i = 0; i < 3; ++i) {
    ++statuses_[1].beat;
    EXPECT_FALSE(judge_.look(statuses_, now_ += milliseconds(1000)));
  }
  EXPECT_EQ(statuses_[0].beat, old.beat);
  EXPECT_TRUE(look());
}

TEST_F(StallJudgeTest, NamesWhoHasOnlyJustBegunToWaitForThem) {
  look();
  look();
  RankStatus late{.rank = 7};
  late.waits = {{.id = 3, .group = 5, .group_name = "h", .what = "barrier #0"}};
  late.num_entered = {{5, 1}};
  statuses_.push_back(late);
  statuses_[1].num_entered[5] = 0;
  const auto verdict = look();
  ASSERT_TRUE(verdict);
  EXPECT_THAT(verdict->waits,
              ElementsAre(Pair(0, 10), Pair(1, 10), Pair(7, 3)));
}

TEST_F(StallJudgeTest, NamesWhoWaitsForThemAfterTheVerdict) {
  look();
  EXPECT_TRUE(look(milliseconds(2000)));
  RankStatus late{.rank = 7};
  late.waits = {{.id = 3, .group = 5, .group_name = "h", .what = "barrier #0"}};
  late.num_entered = {{5, 1}};
  statuses_.push_back(late);
  statuses_[1].num_entered[5] = 0;
  EXPECT_TRUE(look());
  EXPECT_FALSE(look());
}

TEST_F(StallJudgeTest, ACycleIsNeededNotOnlyAChain) {
  statuses_[0].waits.clear();
  for (int i = 0; i < 10; ++i) EXPECT_FALSE(look());
}

TEST(StallVerdict, SurvivesItsText) {
  const StallVerdict verdict{.waits = {{0, 3}, {5, 1ULL << 40}},
                             .text = "a\n\"b\""};
  const auto copy = stall_verdict_of(text_of(verdict));
  EXPECT_EQ(copy.waits, verdict.waits);
  EXPECT_EQ(copy.text, verdict.text);
}

}  // namespace
}  // namespace nfold
