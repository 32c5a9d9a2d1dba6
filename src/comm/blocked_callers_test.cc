#include "comm/blocked_callers.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>
#include <optional>
#include <string>
#include <thread>
#include <vector>

namespace nfold {
namespace {

using std::chrono::milliseconds;
using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::Pair;
using ::testing::SizeIs;

class FakeGroup : public BlockedCallers::WatchedGroup {
 public:
  const std::string& watched_name() const override { return name_; }
  std::uint64_t num_entered() const override { return 18; }
  std::string label() const override { return "step 4"; }
  void condemn(const std::string& reason) override { calls.push_back(reason); }
  void abort() override { calls.emplace_back("abort"); }

  std::vector<std::string> calls;

 private:
  const std::string name_ = "a";
};

class BlockedCallersTest : public ::testing::Test {
 protected:
  BlockedCallersTest() { callers_->add(3, &group_); }

  BlockedCallers::Wait collective() const {
    return {.group = 3, .call = &call_, .label = &label_};
  }
  RankStatus status() const {
    return callers_->status(BlockedCallers::Clock::now());
  }

  FakeGroup group_;
  std::shared_ptr<BlockedCallers> callers_ = std::make_shared<BlockedCallers>();
  const CollectiveCall call_{.sequence = 17};
  const std::string label_ = "step 5, unshard h.1";
};

TEST_F(BlockedCallersTest, AWaitIsSeenWhileItLasts) {
  EXPECT_THAT(status().waits, IsEmpty());
  {
    const BlockedCallers::Scope scope(callers_.get(), collective());
    const auto seen = status();
    ASSERT_THAT(seen.waits, SizeIs(1));
    EXPECT_EQ(seen.waits[0].group, 3);
    EXPECT_EQ(seen.waits[0].group_name, "a");
    EXPECT_EQ(seen.waits[0].sequence, 17U);
    EXPECT_EQ(seen.waits[0].what, "barrier #17");
    EXPECT_EQ(seen.waits[0].label, "step 5, unshard h.1");
    EXPECT_EQ(seen.waits[0].peer, -1);
    EXPECT_THAT(seen.num_entered, ElementsAre(Pair(3, 18)));
  }
  EXPECT_THAT(status().waits, IsEmpty());
}

TEST_F(BlockedCallersTest, OutsideOfCollectivesTheLabelIsTheGroups) {
  const std::function<std::string()> missing = [] { return "has not come"; };
  const BlockedCallers::Scope scope(
      callers_.get(), {.group = 3, .peer = 6, .missing = &missing});
  const auto seen = status();
  ASSERT_THAT(seen.waits, SizeIs(1));
  EXPECT_EQ(seen.waits[0].peer, 6);
  EXPECT_EQ(seen.waits[0].what, "has not come");
  EXPECT_EQ(seen.waits[0].label, "step 4");
}

TEST_F(BlockedCallersTest, EveryWaitHasAnIdOfItsOwn) {
  std::optional<BlockedCallers::Scope> scope;
  scope.emplace(callers_.get(), collective());
  const auto first = status().waits.at(0).id;
  scope.emplace(callers_.get(), collective());
  EXPECT_NE(status().waits.at(0).id, first);
}

TEST_F(BlockedCallersTest, AThreadThatIssuedAndDoesNotWaitMayIssueMore) {
  std::promise<void> is_noted;
  std::promise<void> may_end;
  std::thread other([&] {
    callers_->note_caller();
    is_noted.set_value();
    may_end.get_future().wait();
  });
  is_noted.get_future().wait();
  const BlockedCallers::Scope scope(callers_.get(), collective());
  const auto later = BlockedCallers::Clock::now() + milliseconds(5000);
  EXPECT_THAT(status().waits, IsEmpty());
  EXPECT_EQ(callers_->blocked_for(later).count(), 0);
  may_end.set_value();
  other.join();
  EXPECT_THAT(status().waits, SizeIs(1));
  EXPECT_GE(callers_->blocked_for(later).count(), 1000);
}

TEST_F(BlockedCallersTest, WaitsOfAllThreadsAreToldTogether) {
  std::promise<void> waits;
  std::promise<void> may_end;
  std::thread other([&] {
    callers_->note_caller();
    const BlockedCallers::Scope scope(callers_.get(), collective());
    waits.set_value();
    may_end.get_future().wait();
  });
  waits.get_future().wait();
  EXPECT_THAT(status().waits, SizeIs(1));
  callers_->note_caller();
  EXPECT_THAT(status().waits, IsEmpty());
  {
    const BlockedCallers::Scope scope(callers_.get(), collective());
    EXPECT_THAT(status().waits, SizeIs(2));
  }
  may_end.set_value();
  other.join();
}

TEST_F(BlockedCallersTest, AVerdictReachesTheWaitAndItsGroup) {
  const BlockedCallers::Scope scope(callers_.get(), collective());
  const auto id = status().waits.at(0).id;
  callers_->condemn(id, "crossed");
  EXPECT_EQ(scope.reason(), "crossed");
  callers_->abort(id);
  EXPECT_THAT(group_.calls, ElementsAre("crossed", "abort"));
}

TEST_F(BlockedCallersTest, AVerdictThatComesTooLateHurtsNobody) {
  std::uint64_t id = 0;
  {
    const BlockedCallers::Scope scope(callers_.get(), collective());
    id = status().waits.at(0).id;
  }
  const BlockedCallers::Scope next(callers_.get(), collective());
  callers_->condemn(id, "crossed");
  callers_->abort(id);
  EXPECT_EQ(next.reason(), "");
  EXPECT_THAT(group_.calls, IsEmpty());
}

TEST_F(BlockedCallersTest, AGroupThatIsGoneIsNotAsked) {
  callers_->remove(3);
  const BlockedCallers::Scope scope(callers_.get(), collective());
  EXPECT_THAT(status().waits, IsEmpty());
}

TEST(BlockedCallersScope, NobodyNeedsToWatch) {
  const CollectiveCall call;
  const std::string label;
  const BlockedCallers::Scope scope(nullptr, {.call = &call, .label = &label});
  EXPECT_EQ(scope.reason(), "");
}

}  // namespace
}  // namespace nfold
