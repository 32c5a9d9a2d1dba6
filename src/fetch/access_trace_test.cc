#include "fetch/access_trace.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <initializer_list>

namespace nfold {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr auto kLost = TraceCursor::kLost;

void record_all(TraceRecorder& recorder,
                std::initializer_list<std::size_t> units) {
  for (const auto unit : units) recorder.record(unit);
}

// The entries that a cursor finds for accesses to these units.
std::vector<std::size_t> advance_all(TraceCursor& cursor,
                                     std::initializer_list<std::size_t> units) {
  std::vector<std::size_t> entries;
  for (const auto unit : units) entries.push_back(cursor.advance(unit));
  return entries;
}

TEST(TraceRecorderTest, ConsecutiveAccessesToOneUnitAreOneEntry) {
  TraceRecorder recorder;
  record_all(recorder, {3, 3, 3, 0, 0, 3, 1, 1});
  EXPECT_THAT(recorder.take(), ElementsAre(3, 0, 3, 1));
}

TEST(TraceRecorderTest, UnsureAccessesCountInsideOfAPass) {
  TraceRecorder recorder;
  recorder.record_unsure(7);  // evaluation before it
  record_all(recorder, {0, 1});
  recorder.record_unsure(2);
  recorder.record_unsure(2);
  recorder.record_unsure(3);
  record_all(recorder, {4, 0});
  recorder.record_unsure(5);
  recorder.end_pass();
  recorder.record_unsure(6);  // evaluation between two passes
  record_all(recorder, {0, 1});
  recorder.record_unsure(8);
  EXPECT_THAT(recorder.take(), ElementsAre(0, 1, 2, 3, 4, 0, 1));
  recorder.record_unsure(8);
  record_all(recorder, {1});
  EXPECT_THAT(recorder.take(), ElementsAre(1));
}

TEST(TraceRecorderTest, AfterASplitARepeatIsAnEntryOfItsOwn) {
  TraceRecorder recorder;
  record_all(recorder, {0, 1, 1});
  recorder.split();
  record_all(recorder, {1, 1, 0});
  EXPECT_THAT(recorder.take(), ElementsAre(0, 1, 1, 0));
}

TEST(TraceRecorderTest, ASplitBeforeAnotherUnitChangesNothing) {
  TraceRecorder recorder;
  recorder.split();
  record_all(recorder, {0});
  recorder.split();
  recorder.split();
  record_all(recorder, {1, 1});
  EXPECT_THAT(recorder.take(), ElementsAre(0, 1));
}

TEST(TraceRecorderTest, TakeStartsTheNextStepAfresh) {
  TraceRecorder recorder;
  EXPECT_THAT(recorder.take(), IsEmpty());
  record_all(recorder, {0, 1});
  EXPECT_THAT(recorder.take(), ElementsAre(0, 1));
  EXPECT_THAT(recorder.take(), IsEmpty());
  // The last unit of the step before does not swallow the first of this one.
  record_all(recorder, {1, 0});
  EXPECT_THAT(recorder.take(), ElementsAre(1, 0));
}

TEST(TraceCursorTest, FollowsTheTraceEntryByEntry) {
  const AccessTrace trace{0, 1, 2, 1, 0};
  TraceCursor cursor(trace);
  EXPECT_EQ(cursor.position(), kLost);
  EXPECT_THAT(advance_all(cursor, {0, 1, 2, 1, 0}), ElementsAre(0, 1, 2, 3, 4));
  EXPECT_EQ(cursor.position(), 4);
}

TEST(TraceCursorTest, TakesTheSecondOfTwoEqualEntriesForARepeat) {
  const AccessTrace trace{0, 1, 1, 0};
  TraceCursor cursor(trace);
  EXPECT_THAT(advance_all(cursor, {0, 1, 1, 0}), ElementsAre(0, 1, 2, 3));
}

TEST(TraceCursorTest, GoesOnBehindABranchThatWasNotTaken) {
  const AccessTrace trace{0, 1, 2, 3, 2, 0};
  TraceCursor cursor(trace);
  EXPECT_THAT(advance_all(cursor, {0, 3, 2, 0}), ElementsAre(0, 3, 4, 5));
}

TEST(TraceCursorTest, LooksAroundTheEndOfTheTrace) {
  const AccessTrace trace{0, 1, 2, 3};
  TraceCursor cursor(trace);
  EXPECT_THAT(advance_all(cursor, {2, 3, 0, 3, 1}), ElementsAre(2, 3, 0, 3, 1));
}

TEST(TraceCursorTest, ComesBackToTheEntryAtHandOnlyIfThereIsNoOther) {
  const AccessTrace trace{0, 1, 0, 2};
  TraceCursor cursor(trace);
  EXPECT_THAT(advance_all(cursor, {0, 0, 0}), ElementsAre(0, 2, 0));
  EXPECT_THAT(advance_all(cursor, {2, 2}), ElementsAre(3, 3));
}

TEST(TraceCursorTest, IsLostAtAUnitThatTheTraceDoesNotHold) {
  const AccessTrace trace{0, 1, 0};
  TraceCursor cursor(trace);
  EXPECT_THAT(advance_all(cursor, {0, 1, 7}), ElementsAre(0, 1, kLost));
  EXPECT_EQ(cursor.position(), kLost);
  // Found again from the start.
  EXPECT_THAT(advance_all(cursor, {0, 1}), ElementsAre(0, 1));
}

TEST(TraceCursorTest, IsAlwaysLostInAnEmptyTrace) {
  const AccessTrace trace;
  TraceCursor cursor(trace);
  EXPECT_THAT(advance_all(cursor, {0, 0, 1}), ElementsAre(kLost, kLost, kLost));
}

TEST(TraceCursorTest, RewindStartsAtTheFirstEntryAgain) {
  const AccessTrace trace{0, 1, 0};
  TraceCursor cursor(trace);
  EXPECT_THAT(advance_all(cursor, {0, 1}), ElementsAre(0, 1));
  cursor.rewind();
  EXPECT_EQ(cursor.position(), kLost);
  EXPECT_EQ(cursor.advance(0), 0);
}

TEST(TraceCursorTest, FollowsWhatTheTraceHoldsByThen) {
  AccessTrace trace;
  TraceCursor cursor(trace);
  EXPECT_EQ(cursor.advance(4), kLost);
  trace = {5, 4};
  EXPECT_THAT(advance_all(cursor, {5, 4}), ElementsAre(0, 1));
}

}  // namespace
}  // namespace nfold
