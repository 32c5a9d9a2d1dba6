#include "base/log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "nfold/errors.h"

namespace nfold {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;

// Runs `body` on a thread of its own, which has the given rank, and returns
// what it wrote to standard error.
template <typename F>
std::string written_by_rank(int rank, int size, F body) {
  testing::internal::CaptureStderr();
  std::thread([&] {
    set_log_rank(rank, size);
    body();
  }).join();
  return testing::internal::GetCapturedStderr();
}

class LogTest : public testing::Test {
 protected:
  void SetUp() override { set_log_level(LogLevel::kInfo); }
  void TearDown() override { set_log_level(LogLevel::kInfo); }
};

TEST_F(LogTest, OneRankHasNoPrefix) {
  EXPECT_THAT(written_by_rank(0, 1, [] { log_info("{} of {}", 1, 2); }),
              EndsWith(" info 1 of 2\n"));
}

TEST_F(LogTest, LineNamesRankWhenThereAreSeveral) {
  EXPECT_THAT(written_by_rank(0, 2, [] { log_info("x"); }),
              EndsWith(" info [rank 0] x\n"));
}

TEST_F(LogTest, OtherRanksKeepInfoAndWarningsToThemselves) {
  EXPECT_EQ(written_by_rank(1, 2,
                            [] {
                              log_info("x");
                              log_warning("y");
                            }),
            "");
}

TEST_F(LogTest, EveryRankWritesItsErrorsAndOwnWarnings) {
  const std::string text = written_by_rank(3, 4, [] {
    log_rank_warning("a");
    log_error("b");
  });
  EXPECT_THAT(text, HasSubstr("warning [rank 3] a\n"));
  EXPECT_THAT(text, HasSubstr("error [rank 3] b\n"));
}

TEST_F(LogTest, LevelFilters) {
  EXPECT_EQ(written_by_rank(0, 1, [] { log_debug("x"); }), "");
  set_log_level(LogLevel::kError);
  const std::string text = written_by_rank(0, 1, [] {
    log_rank_warning("a");
    log_error("b");
  });
  EXPECT_THAT(text, Not(HasSubstr("a\n")));
  EXPECT_THAT(text, HasSubstr("b\n"));
}

TEST_F(LogTest, OnceWritesEachTextOnce) {
  const std::string text = written_by_rank(0, 1, [] {
    for (int i = 0; i < 3; ++i) {
      log_once(LogLevel::kWarning, "key {} is ignored", i % 2);
    }
  });
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 2);
}

TEST_F(LogTest, ThreadWithoutRankHasThatOfTheProcess) {
  set_process_log_rank(2, 3);
  testing::internal::CaptureStderr();
  std::thread([] { log_error("x"); }).join();
  EXPECT_THAT(testing::internal::GetCapturedStderr(), HasSubstr("[rank 2] x"));
  EXPECT_THAT(written_by_rank(1, 3, [] { log_error("y"); }),
              HasSubstr("[rank 1] y"));
  set_process_log_rank(0, 1);
}

TEST_F(LogTest, TextIsNotTakenForAFormat) {
  EXPECT_THAT(written_by_rank(0, 2, [] { log_info("{}", "{} {{"); }),
              EndsWith("[rank 0] {} {{\n"));
}

TEST_F(LogTest, UnknownLevelNamesTheKnownOnes) {
  try {
    log_level_of("loud");
    FAIL();
  } catch (const c10::ValueError& error) {
    EXPECT_EQ(message_of(error),
              "expected debug, info, warning or error, found \"loud\"");
  }
}

TEST_F(LogTest, RankOutsideOfSizeIsRefused) {
  EXPECT_THROW(set_log_rank(2, 2), c10::ValueError);
  EXPECT_THROW(set_process_log_rank(-1, 2), c10::ValueError);
}

}  // namespace
}  // namespace nfold
