#include "train/launch/error_report.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <stdexcept>

#include "nfold/errors.h"

namespace nfold::train {
namespace {

// What report_error writes into the launcher's pipe.
std::optional<ErrorReport> reported(const std::exception& error) {
  int ends[2];
  EXPECT_EQ(::pipe(ends), 0);
  ::setenv(kErrorFdVariable, std::to_string(ends[1]).c_str(), 1);
  report_error(error);
  ::unsetenv(kErrorFdVariable);
  ::close(ends[1]);
  char buffer[4096];
  const ssize_t count = ::read(ends[0], buffer, sizeof(buffer));
  ::close(ends[0]);
  return decode_error_report(
      {buffer, static_cast<std::size_t>(count > 0 ? count : 0)});
}

std::string printed(const std::exception& error) {
  ::testing::internal::CaptureStderr();
  report_error(error);
  return ::testing::internal::GetCapturedStderr();
}

TEST(ErrorReport, GoesToTheLauncherIfThereIsOne) {
  const auto report = reported(std::runtime_error("first line\nsecond"));
  ASSERT_TRUE(report);
  EXPECT_EQ(report->text, "first line\nsecond");
  EXPECT_FALSE(report->is_lost_peer);
}

TEST(ErrorReport, TellsALostPeerFromAnErrorOfItsOwn) {
  const c10::SourceLocation here{"f", "f.cc", 1};
  EXPECT_TRUE(reported(c10::DistBackendError(here, "gone"))->is_lost_peer);
  EXPECT_TRUE(reported(c10::DistStoreError(here, "gone"))->is_lost_peer);
  EXPECT_FALSE(reported(c10::ValueError(here, "bad"))->is_lost_peer);
}

TEST(ErrorReport, GoesToStderrWithoutAStackTrace) {
  try {
    TORCH_CHECK_VALUE(false, "train.steps is -1");
  } catch (const c10::ValueError& error) {
    EXPECT_EQ(printed(error), "nfold: error: train.steps is -1\n");
  }
}

TEST(ErrorReport, GoesToStderrIfTheLauncherIsGone) {
  ::setenv(kErrorFdVariable, "987", 1);
  EXPECT_EQ(printed(std::runtime_error("text")), "nfold: error: text\n");
  ::unsetenv(kErrorFdVariable);
}

TEST(ErrorReport, NothingInThePipeIsNoReport) {
  EXPECT_FALSE(decode_error_report(""));
}

}  // namespace
}  // namespace nfold::train
