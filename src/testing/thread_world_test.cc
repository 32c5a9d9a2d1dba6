#include "testing/thread_world.h"

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <future>
#include <memory>
#include <stdexcept>

#include "base/log.h"
#include "nfold/collectives.h"
#include "nfold/errors.h"

namespace nfold {
namespace {

TEST(RunRanks, RunsBodyOncePerRank) {
  std::array<std::atomic<int>, 3> runs{};
  run_ranks(3, [&](World& world) {
    EXPECT_EQ(world.size(), 3);
    EXPECT_EQ(log_rank().rank, world.rank());
    ++runs[static_cast<std::size_t>(world.rank())];
  });
  for (const auto& count : runs) EXPECT_EQ(count, 1);
}

TEST(RunRanks, KeepsTypeOfErrorAndAddsRank) {
  try {
    run_ranks(2, [](World& world) {
      TORCH_CHECK_VALUE(world.rank() != 1, "lr: expected > 0");
      // Ends when rank 1 has left, whose error came first.
      try {
        barrier(world.group()).wait();
      } catch (const c10::DistBackendError&) {
      }
    });
    FAIL() << "nothing was raised";
  } catch (const c10::ValueError& error) {
    const std::string text = message_of(error);
    EXPECT_NE(text.find("lr: expected > 0"), std::string::npos) << text;
    EXPECT_NE(text.find("on rank 1 of 2"), std::string::npos) << text;
  }
}

TEST(RunRanks, AddsRankToOtherErrors) {
  try {
    run_ranks(1, [](World&) { throw std::out_of_range("index 3"); });
    FAIL() << "nothing was raised";
  } catch (const std::runtime_error& error) {
    EXPECT_STREQ(error.what(), "index 3 (on rank 0 of 1)");
  }
}

TEST(RunRanks, NamesRankThatDoesNotReturn) {
  std::promise<void> release;
  std::promise<void> left;
  try {
    run_ranks(2,
              [&release, &left](World& world) {
                if (world.rank() != 1) return;
                release.get_future().wait();
                left.set_value();
              },
              {.limit = std::chrono::milliseconds(1500)});
    ADD_FAILURE() << "nothing was raised";
  } catch (const std::runtime_error& error) {
    EXPECT_STREQ(error.what(),
                 "run_ranks: of 2 ranks, 1 did not return within 1.5 s");
  }
  // The thread that was left behind must not outlive the promises.
  release.set_value();
  left.get_future().wait();
}

}  // namespace
}  // namespace nfold
