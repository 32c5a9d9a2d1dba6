// `nfold bench` as a user runs it, on sizes that take no time.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <set>

#include "train/launch/command_for_tests.h"

namespace nfold::train {
namespace {

using ::testing::HasSubstr;
using BenchJson = nlohmann::json;

TEST(BenchProgramTest, OptimizerTellsAsATableAndAsJson) {
  const Arguments command = {NFOLD_PROGRAM, "bench",     "optimizer",
                             "--numel",     "20000",     "--rounds",
                             "2",           "--threads", "1"};
  const Outcome table = run(command);
  ASSERT_EQ(table.exit_code, 0) << table.errors;
  EXPECT_THAT(table.output, HasSubstr("20000 fp32 elements, 1 thread"));
  EXPECT_THAT(table.output, HasSubstr("torch _fused_adamw_"));
  Arguments with_json = command;
  with_json.emplace_back("--json");
  const auto json = BenchJson::parse(run(with_json).output);
  EXPECT_EQ(json["threads"], 1);
  EXPECT_GT(json["rows"].size(), 15u);
}

TEST(BenchProgramTest, CollectivesStartTheirRanks) {
  const Outcome outcome =
      run({NFOLD_PROGRAM, "bench", "collectives", "--nproc", "2", "--sizes",
           "4K", "1M", "--rounds", "2", "--json"});
  ASSERT_EQ(outcome.exit_code, 0) << outcome.errors;
  const auto json = BenchJson::parse(outcome.output);
  EXPECT_EQ(json["ranks"], 2);
  std::set<std::string> collectives;
  std::set<std::int64_t> sizes;
  for (const auto& row : json["rows"]) {
    collectives.insert(row["collective"]);
    sizes.insert(row["size_bytes"].get<std::int64_t>());
    EXPECT_GT(row["gb_per_second"]["median"], 0);
  }
  EXPECT_EQ(collectives,
            (std::set<std::string>{"all_gather", "all_reduce", "all_to_all",
                                   "broadcast", "reduce_scatter"}));
  EXPECT_EQ(sizes, (std::set<std::int64_t>{4096, 1 << 20}));
}

TEST(BenchProgramTest, WrongUseIsExplained) {
  const Outcome alone =
      run({NFOLD_PROGRAM, "bench", "collectives", "--nproc", "1"});
  EXPECT_EQ(alone.exit_code, 1);
  EXPECT_THAT(alone.errors, HasSubstr("--nproc 2"));
  const Outcome size =
      run({NFOLD_PROGRAM, "bench", "collectives", "--sizes", "big"});
  EXPECT_EQ(size.exit_code, 2);
  EXPECT_THAT(size.errors, HasSubstr("big"));
  EXPECT_EQ(run({NFOLD_PROGRAM, "bench"}).exit_code, 2);
  EXPECT_EQ(
      run({NFOLD_PROGRAM, "bench", "optimizer", "--rounds", "0"}).exit_code, 2);
  EXPECT_THAT(run({NFOLD_PROGRAM, "bench", "optimizer", "--help"}).output,
              HasSubstr("nfold bench optimizer --threads 2"));
}

}  // namespace
}  // namespace nfold::train
