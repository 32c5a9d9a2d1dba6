#include "param/replay_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace nfold {
namespace {

using testing::ElementsAre;

ReplayStep run(std::size_t index) { return {ReplayAction::kRun, index}; }
ReplayStep load(std::size_t index) { return {ReplayAction::kLoad, index}; }
ReplayStep store(std::size_t index) { return {ReplayAction::kStore, index}; }
ReplayStep drop(std::size_t index) { return {ReplayAction::kDrop, index}; }
ReplayStep finish(std::size_t index) { return {ReplayAction::kFinish, index}; }

// Nothing must run, nothing is wanted, every storage may be stored and has
// 100 bytes.
ReplayRequest request_for(std::size_t num_operators, std::size_t num_storages) {
  ReplayRequest request;
  request.must_run.assign(num_operators, false);
  request.is_wanted.assign(num_storages, false);
  request.may_store.assign(num_storages, true);
  request.nbytes.assign(num_storages, 100);
  return request;
}

const OperatorAccess kMakes0{{}, {0}};
const OperatorAccess kMakes1{{}, {1}};
const OperatorAccess kChanges0{{0}, {0}};
const OperatorAccess kChanges1{{1}, {1}};
const OperatorAccess kReads0Makes1{{0}, {1}};

TEST(ReplayPlanTest, AStorageIsFinishedRightAfterItsLastOperator) {
  auto request = request_for(3, 2);
  request.is_wanted = {true, true};
  EXPECT_THAT(plan_replay({kMakes0, kChanges0, kMakes1}, request),
              ElementsAre(run(0), run(1), finish(0), run(2), finish(1)));
}

TEST(ReplayPlanTest, WhatNobodyWantsDoesNotRun) {
  auto request = request_for(2, 2);
  request.is_wanted = {true, false};
  EXPECT_THAT(plan_replay({kMakes0, kMakes1}, request),
              ElementsAre(run(0), finish(0)));
}

TEST(ReplayPlanTest, ATemporaryLivesUntilItsLastReader) {
  auto request = request_for(3, 2);
  request.is_wanted = {false, true};
  EXPECT_THAT(plan_replay({kMakes0, kReads0Makes1, kChanges1}, request),
              ElementsAre(run(0), run(1), drop(0), run(2), finish(1)));
}

TEST(ReplayPlanTest, AnOverwrittenValueIsNotComputed) {
  auto request = request_for(3, 1);
  request.is_wanted = {true};
  EXPECT_THAT(plan_replay({kMakes0, kChanges0, kMakes0}, request),
              ElementsAre(run(2), finish(0)));
}

TEST(ReplayPlanTest, AnOverwrittenRandomValueIsDrawnAndDropped) {
  auto request = request_for(3, 2);
  request.is_wanted = {true, true};
  request.must_run = {true, false, false};
  EXPECT_THAT(
      plan_replay({kMakes0, kMakes1, kMakes0}, request),
      ElementsAre(run(0), drop(0), run(1), finish(1), run(2), finish(0)));
}

TEST(ReplayPlanTest, ARandomOperatorHasItsInputs) {
  auto request = request_for(2, 2);
  request.must_run = {false, true};
  EXPECT_THAT(plan_replay({kMakes0, kReads0Makes1}, request),
              ElementsAre(run(0), run(1), drop(1), drop(0)));
}

TEST(ReplayPlanTest, WhatWaitsIsStoredAndLoadedWhenThereIsNoRoom) {
  auto request = request_for(3, 2);
  request.is_wanted = {true, true};
  EXPECT_THAT(plan_replay({kMakes0, kMakes1, kChanges0}, request),
              ElementsAre(run(0), store(0), run(1), finish(1), load(0), run(2),
                          finish(0)));
  request.max_waiting_bytes = 100;
  EXPECT_THAT(plan_replay({kMakes0, kMakes1, kChanges0}, request),
              ElementsAre(run(0), run(1), finish(1), run(2), finish(0)));
}

TEST(ReplayPlanTest, WhatIsNeededLastIsStoredFirst) {
  auto request = request_for(5, 3);
  request.is_wanted = {true, true, true};
  request.max_waiting_bytes = 100;
  const OperatorAccess makes_2{{}, {2}};
  EXPECT_THAT(
      plan_replay({kMakes0, kMakes1, makes_2, kChanges1, kChanges0}, request),
      ElementsAre(run(0), run(1), store(0), run(2), finish(2), run(3),
                  finish(1), load(0), run(4), finish(0)));
}

TEST(ReplayPlanTest, WhatWasLoadedToBeReadIsNotStoredAgain) {
  auto request = request_for(3, 3);
  request.is_wanted = {true, true, true};
  const OperatorAccess reads_0_makes_2{{0}, {2}};
  EXPECT_THAT(plan_replay({kMakes0, kMakes1, reads_0_makes_2}, request),
              ElementsAre(run(0), store(0), run(1), finish(1), load(0), run(2),
                          finish(2), drop(0)));
}

TEST(ReplayPlanTest, WhatMayNotBeStoredWaits) {
  auto request = request_for(3, 2);
  request.is_wanted = {true, true};
  request.may_store = {false, true};
  EXPECT_THAT(plan_replay({kMakes0, kMakes1, kChanges0}, request),
              ElementsAre(run(0), run(1), finish(1), run(2), finish(0)));
}

TEST(ReplayPlanTest, AWantedStorageWithoutOperatorsIsFinished) {
  auto request = request_for(1, 2);
  request.is_wanted = {true, true};
  EXPECT_THAT(plan_replay({kMakes1}, request),
              ElementsAre(run(0), finish(1), finish(0)));
}

}  // namespace
}  // namespace nfold
