#include "train/monitor/progress_bar.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <string>

#include "train/monitor/text_table.h"

namespace nfold::train {
namespace {

using namespace std::chrono_literals;
using testing::AllOf;
using testing::EndsWith;
using testing::HasSubstr;
using testing::Not;

class ProgressBarTest : public testing::Test {
 protected:
  ProgressDevice device(bool is_terminal, std::size_t width = 80) {
    ProgressDevice device;
    device.write = [this](std::string_view text) {
      shown_ = text;
      ++num_shown_;
    };
    device.now = [this] { return now_; };
    device.is_terminal = is_terminal;
    device.width = [width] { return width; };
    return device;
  }

  std::string shown_;
  int num_shown_ = 0;
  std::chrono::nanoseconds now_ = 1000s;
};

TEST_F(ProgressBarTest, DrawsOverOneLineOnATerminal) {
  ProgressBar bar({.label = "train", .total = 100}, device(true));
  now_ += 10s;
  bar.update(50, "loss 4.1");
  EXPECT_EQ(shown_,
            "\r\x1b[Ktrain  [===============>              ]   50%  50/100  "
            "loss 4.1  10 s left");
  now_ += 10s;
  bar.update(100, "loss 3.9");
  bar.finish();
  EXPECT_THAT(shown_, AllOf(HasSubstr("100%"), EndsWith("20 s\n")));
}

TEST_F(ProgressBarTest, FitsAnyWidth) {
  for (std::size_t width = 1; width < 120; ++width) {
    ProgressBar bar({.label = "größe", .total = 300}, device(true, width));
    now_ += 1s;
    bar.update(30, "loss 4.1267  8.9 k tok/s");
    const std::string line = shown_.substr(shown_.find("\x1b[K") + 3);
    EXPECT_LT(width_of(line), std::max<std::size_t>(width, 2)) << width;
    EXPECT_EQ(line.find('\n'), std::string::npos);
  }
}

TEST_F(ProgressBarTest, WritesPlainLinesNowAndThenElsewhere) {
  ProgressBar bar({.label = "train", .total = 1000}, device(false));
  for (int step = 1; step <= 100; ++step) {
    now_ += 1s;
    bar.update(step, "loss 4");
  }
  EXPECT_EQ(num_shown_, 10);  // the first, then every 10 s
  EXPECT_EQ(shown_, "train    9%  91/1000  loss 4  15:09 left\n");
  bar.finish();
  EXPECT_THAT(shown_, HasSubstr("100/1000"));
  bar.finish();
  EXPECT_EQ(num_shown_, 11);
}

TEST_F(ProgressBarTest, DrawsNotMoreOftenThanNeeded) {
  ProgressBar bar({.total = 10000}, device(true));
  for (int step = 1; step <= 1000; ++step) {
    now_ += 1ms;
    bar.update(step);
  }
  EXPECT_EQ(num_shown_, 10);
}

TEST_F(ProgressBarTest, TimeLeftFollowsThePaceOfLate) {
  ProgressBar bar({.total = 2000}, device(true));
  EXPECT_LT(bar.seconds_left(), 0);
  for (int step = 1; step <= 100; ++step) {
    now_ += 10s;  // slow at first
    bar.update(step);
  }
  EXPECT_NEAR(bar.seconds_left(), 19000, 1);
  for (int step = 101; step <= 1000; ++step) {
    now_ += 1s;
    bar.update(step);
  }
  EXPECT_LT(bar.seconds_left(), 2000);
  EXPECT_GT(bar.seconds_left(), 999);
}

TEST_F(ProgressBarTest, ResumedStepsDoNotCountForThePace) {
  ProgressBar bar({.total = 1000, .start = 900}, device(true));
  now_ += 10s;
  bar.update(910);
  EXPECT_NEAR(bar.seconds_left(), 90, 0.1);
}

TEST_F(ProgressBarTest, ClearTakesTheLineAwayOnce) {
  ProgressBar bar({.total = 10}, device(true));
  bar.clear();
  EXPECT_EQ(num_shown_, 0);
  bar.update(1);
  bar.clear();
  EXPECT_EQ(shown_, "\r\x1b[K");
  bar.clear();
  EXPECT_EQ(num_shown_, 2);
}

TEST_F(ProgressBarTest, ShortTasksWriteNoPlainLines) {
  ProgressBar bar({}, device(false));
  bar.restart("reading", 10);
  now_ += 1s;
  bar.update(5);
  EXPECT_EQ(num_shown_, 0);
  now_ += 10s;
  bar.update(6);
  EXPECT_THAT(shown_, HasSubstr("reading   60%  6/10"));
}

TEST_F(ProgressBarTest, UnknownTotalShowsCountOnly) {
  ProgressBar bar({.label = "tokens"}, device(true));
  now_ += 1s;
  bar.update(17, "x");
  EXPECT_EQ(shown_, "\r\x1b[Ktokens  17  x");
}

}  // namespace
}  // namespace nfold::train
