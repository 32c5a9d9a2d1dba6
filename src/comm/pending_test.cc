#include "comm/pending.h"

#include <gtest/gtest.h>

#include <future>
#include <thread>

#include "nfold/errors.h"

namespace nfold {
namespace {

TEST(Pending, DefaultIsDone) {
  Pending pending;
  EXPECT_TRUE(pending.is_done());
  pending.wait();
}

TEST(Pending, WaitMayBeRepeated) {
  auto state = std::make_shared<Pending::State>();
  Pending pending(state);
  EXPECT_FALSE(pending.is_done());
  state->succeed();
  EXPECT_TRUE(pending.is_done());
  pending.wait();
  pending.wait();
}

TEST(Pending, EveryWaitRaisesTheError) {
  auto state = std::make_shared<Pending::State>();
  Pending pending(state);
  state->fail("rank 1 died");
  for (int i = 0; i < 2; ++i) {
    try {
      pending.wait();
      FAIL() << "nothing was raised";
    } catch (const c10::DistBackendError& error) {
      EXPECT_EQ(message_of(error), "rank 1 died");
    }
  }
}

TEST(Pending, WaitBlocksUntilDone) {
  auto state = std::make_shared<Pending::State>();
  Pending pending(state);
  int value = 0;
  std::thread worker([&] {
    value = 7;
    state->succeed();
  });
  pending.wait();
  EXPECT_EQ(value, 7);
  worker.join();
}

TEST(Pending, DestructorAndAssignmentWaitAndDropTheError) {
  for (const bool assigns : {false, true}) {
    auto state = std::make_shared<Pending::State>();
    int value = 0;
    std::thread worker;
    {
      Pending pending(state);
      worker = std::thread([&] {
        value = 7;
        state->fail("rank 1 died");
      });
      if (assigns) {
        pending = Pending();
        EXPECT_EQ(value, 7);
      }
    }
    EXPECT_EQ(value, 7);
    worker.join();
  }
}

TEST(Pending, MovedFromIsDone) {
  auto state = std::make_shared<Pending::State>();
  Pending pending(state);
  Pending other = std::move(pending);
  EXPECT_TRUE(pending.is_done());
  EXPECT_FALSE(other.is_done());
  state->succeed();
}

TEST(Pending, RunsItsFunctionOnceAndOnlyAfterSuccess) {
  for (const bool succeeds : {true, false}) {
    auto state = std::make_shared<Pending::State>();
    int calls = 0;
    Pending first(Pending(state), [&calls] { ++calls; });
    Pending pending = std::move(first);
    if (succeeds) {
      state->succeed();
      pending.wait();
      pending.wait();
    } else {
      state->fail("rank 1 died");
      EXPECT_THROW(pending.wait(), c10::DistBackendError);
    }
    first.wait();
    EXPECT_EQ(calls, succeeds ? 1 : 0);
  }
  bool was_called = false;
  {
    const Pending dropped(Pending(), [&] { was_called = true; });
  }
  EXPECT_FALSE(was_called);
}

TEST(Pending, WhenDoneIsCalledOnceByWhoeverFinishes) {
  for (const bool is_done_before : {true, false}) {
    for (const bool succeeds : {true, false}) {
      auto state = std::make_shared<Pending::State>();
      const auto finish = [&] {
        std::thread([&] {
          succeeds ? state->succeed() : state->fail("rank 1 died");
        }).join();
      };
      int calls = 0;
      std::thread::id caller;
      if (is_done_before) finish();
      state->when_done([&](const std::string* error) {
        ++calls;
        caller = std::this_thread::get_id();
        EXPECT_TRUE(state->is_done());
        EXPECT_EQ(error == nullptr, succeeds);
        if (error != nullptr) {
          EXPECT_EQ(*error, "rank 1 died");
        }
      });
      EXPECT_EQ(calls, is_done_before ? 1 : 0);
      if (!is_done_before) finish();
      EXPECT_EQ(calls, 1);
      EXPECT_EQ(caller == std::this_thread::get_id(), is_done_before);
    }
  }
}

TEST(Pending, ReleasedDoesNotWait) {
  auto state = std::make_shared<Pending::State>();
  EXPECT_EQ(Pending::State::release(Pending(state)), state);
  EXPECT_FALSE(state->is_done());
  EXPECT_EQ(Pending::State::release(Pending()), nullptr);
}

}  // namespace
}  // namespace nfold
