#include "testing/process_world.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <thread>

#include "nfold/collectives.h"
#include "nfold/world.h"

namespace nfold {
namespace {

using ::testing::HasSubstr;

int own_rank() { return std::atoi(std::getenv("RANK")); }

const ProcessBody kSums("Sums", [] {
  auto world = World::from_environment();
  auto tensor = at::full({3}, world.rank() + 1.0f);
  all_reduce(world.group(), tensor).wait();
  std::printf("sum %d\n", tensor[0].item().toInt());
});

const ProcessBody kOneThrows("OneThrows", [] {
  if (own_rank() == 1) throw std::runtime_error("rank 1 gives up");
});

const ProcessBody kOneExpects("OneExpects",
                              [] { EXPECT_EQ(own_rank(), 0) << "odd"; });

const ProcessBody kSleeps("Sleeps", [] {
  std::printf("asleep\n");
  std::fflush(stdout);
  std::this_thread::sleep_for(std::chrono::minutes(10));
});

TEST(ProcessWorld, RanksMeetAndCommunicate) {
  ProcessWorld ranks("Sums", 2);
  for (const auto& rank : ranks.wait()) {
    EXPECT_EQ(rank.exit_code, 0) << rank.output;
    EXPECT_THAT(rank.output, HasSubstr("sum 3\n"));
  }
}

TEST(ProcessWorld, ReportsExceptionOfOneRank) {
  ProcessWorld ranks("OneThrows", 2);
  const auto results = ranks.wait();
  EXPECT_EQ(results[0].exit_code, 0) << results[0].output;
  EXPECT_EQ(results[1].exit_code, 1);
  EXPECT_THAT(results[1].output, HasSubstr("rank 1 gives up"));
}

TEST(ProcessWorld, ReportsFailedExpectationOfOneRank) {
  ProcessWorld ranks("OneExpects", 2);
  const auto results = ranks.wait();
  EXPECT_EQ(results[0].exit_code, 0) << results[0].output;
  EXPECT_EQ(results[1].exit_code, 1);
  EXPECT_THAT(results[1].output, HasSubstr("odd"));
}

TEST(ProcessWorld, UnknownBodyIsAnError) {
  ProcessWorld ranks("Nobody", 1);
  const auto results = ranks.wait();
  EXPECT_EQ(results[0].exit_code, 1);
  EXPECT_THAT(results[0].output, HasSubstr("'Nobody'"));
}

TEST(ProcessWorld, KilledRankReportsSignal) {
  ProcessWorld ranks("Sleeps", 1);
  ranks.wait_for_output(0, "asleep");
  ranks.kill(0);
  const auto results = ranks.wait();
  EXPECT_EQ(results[0].signal, SIGKILL);
  EXPECT_EQ(results[0].exit_code, -1);
  EXPECT_FALSE(results[0].is_late);
}

TEST(ProcessWorld, RankThatExceedsLimitIsKilled) {
  ProcessWorldOptions options;
  options.limit = std::chrono::seconds(3);
  ProcessWorld ranks("Sleeps", 1, options);
  const auto results = ranks.wait();
  EXPECT_TRUE(results[0].is_late);
  EXPECT_EQ(results[0].signal, SIGKILL);
}

TEST(ProcessWorld, OutputThatNeverComesIsAnError) {
  ProcessWorld ranks("OneThrows", 1);
  EXPECT_THROW(ranks.wait_for_output(0, "ready"), std::runtime_error);
}

}  // namespace
}  // namespace nfold
