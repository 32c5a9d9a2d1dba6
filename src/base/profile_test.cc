#include "base/profile.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/log.h"
#include "nfold/errors.h"

namespace nfold {
namespace {

using ::testing::HasSubstr;

class ProfileTest : public testing::Test {
 protected:
  void TearDown() override {
    stop_profile();
    std::filesystem::remove(path_);
  }

  nlohmann::json written() {
    write_chrome_trace(path_);
    std::ifstream file(path_);
    return nlohmann::json::parse(file).at("traceEvents");
  }

  // Complete events only.
  std::vector<nlohmann::json> written_ranges() {
    std::vector<nlohmann::json> ranges;
    for (const auto& event : written()) {
      if (event.at("ph") == "X") ranges.push_back(event);
    }
    return ranges;
  }

  const std::string path_ =
      testing::TempDir() + "nfold_profile_" +
      testing::UnitTest::GetInstance()->current_test_info()->name() + ".json";
};

TEST_F(ProfileTest, RecordsNothingWhileOff) {
  start_profile();
  stop_profile();
  { const ProfileRange range("off"); }
  EXPECT_TRUE(written_ranges().empty());
  EXPECT_TRUE(profile_totals().empty());
}

TEST_F(ProfileTest, RangesOfOneThreadNest) {
  start_profile();
  {
    const ProfileRange outer("outer");
    for (int i = 0; i < 100; ++i) const ProfileRange inner("inner");
  }
  double outer_begin = 0;
  double outer_end = 0;
  double last_end = 0;
  const auto ranges = written_ranges();
  ASSERT_EQ(ranges.size(), 101);
  for (const auto& range : ranges) {
    const double begin = range.at("ts");
    const double end = begin + range.at("dur").get<double>();
    if (range.at("name") == "outer") {
      outer_begin = begin;
      outer_end = end;
      continue;
    }
    EXPECT_GE(begin, last_end);
    last_end = end;
  }
  EXPECT_GE(outer_end, last_end);
  EXPECT_LE(outer_begin, ranges.front().at("ts").get<double>());
}

TEST_F(ProfileTest, EachThreadHasItsOwnNamedTrackAlsoAfterItsEnd) {
  start_profile();
  const auto work = [](const char* name) {
    set_profile_thread_name(name);
    const ProfileRange range("work");
  };
  std::thread(work, "one").join();
  std::thread(work, "two").join();
  std::map<int, std::string> names;
  std::map<int, int> num_ranges;
  for (const auto& event : written()) {
    if (event.at("name") == "thread_name") {
      names[event.at("tid")] = event.at("args").at("name");
    }
    if (event.at("ph") == "X") ++num_ranges[event.at("tid")];
  }
  ASSERT_EQ(num_ranges.size(), 2);
  std::vector<std::string> found;
  for (const auto& [track, count] : num_ranges) {
    EXPECT_EQ(count, 1);
    found.push_back(names.at(track));
  }
  EXPECT_THAT(found, testing::UnorderedElementsAre("one", "two"));
}

TEST_F(ProfileTest, RanksThatAreThreadsAreSeparateProcessesOfTheTrace) {
  start_profile();
  for (int rank = 0; rank < 2; ++rank) {
    std::thread([rank] {
      set_log_rank(rank, 2);
      const ProfileRange range("work");
    }).join();
  }
  std::vector<int> pids;
  for (const auto& range : written_ranges()) pids.push_back(range.at("pid"));
  EXPECT_THAT(pids, testing::UnorderedElementsAre(0, 1));
}

TEST_F(ProfileTest, TotalsSumByName) {
  start_profile();
  for (int i = 0; i < 3; ++i) const ProfileRange range("a");
  { const ProfileRange range("b"); }
  std::map<std::string, std::int64_t> calls;
  for (const auto& total : profile_totals()) {
    EXPECT_GE(total.total_ms, 0);
    calls[total.name] = total.calls;
  }
  EXPECT_EQ(calls, (std::map<std::string, std::int64_t>{{"a", 3}, {"b", 1}}));
}

TEST_F(ProfileTest, StartDropsWhatWasRecorded) {
  start_profile();
  { const ProfileRange range("before"); }
  {
    const ProfileRange across("across");
    start_profile();
    const ProfileRange range("after");
  }
  const auto ranges = written_ranges();
  ASSERT_EQ(ranges.size(), 1);
  EXPECT_EQ(ranges[0].at("name"), "after");
}

TEST_F(ProfileTest, ManyThreadsRecordWhileOneWrites) {
  start_profile();
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i) {
    threads.emplace_back([] {
      for (int k = 0; k < 2000; ++k) const ProfileRange range("work");
    });
  }
  EXPECT_LE(written_ranges().size(), 6000);
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(written_ranges().size(), 6000);
}

TEST_F(ProfileTest, FileThatCannotBeWrittenIsNamed) {
  try {
    write_chrome_trace("/nonexistent/trace.json");
    FAIL();
  } catch (const IoError& error) {
    EXPECT_THAT(message_of(error), HasSubstr("/nonexistent/trace.json"));
  }
}

TEST_F(ProfileTest, FullDiskIsAnError) {
  if (!std::filesystem::exists("/dev/full")) GTEST_SKIP();
  EXPECT_THROW(write_chrome_trace("/dev/full"), IoError);
}

}  // namespace
}  // namespace nfold
