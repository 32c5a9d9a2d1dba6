#include "train/bench_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace nfold::train {
namespace {

using ::testing::HasSubstr;

bench::OptimizerBench some_optimizer_bench() {
  bench::OptimizerBench made{.numel = 100000000,
                             .num_threads = 2,
                             .num_rounds = 7,
                             .simd = "avx512",
                             .buffer_bytes = std::int64_t{2} << 30,
                             .huge_page_bytes = std::int64_t{1} << 30};
  made.rows.push_back({.name = "copy",
                       .bytes = {4, 4},
                       .seconds = {0.04, 0.03, 0.05},
                       .gb_per_second = {20, 16, 26.67},
                       .by_plain_loop = {1, 1, 1},
                       .by_copy = {1, 1, 1},
                       .is_yardstick = true});
  made.rows.push_back({.name = "AdamW",
                       .bytes = {16, 12},
                       .seconds = {0.1, 0.1, 0.2},
                       .gb_per_second = {28, 14, 28},
                       .by_plain_loop = {0.95, 0.9, 1},
                       .by_copy = {1.4, 1.3, 1.5}});
  return made;
}

TEST(BenchTable, OptimizersStandBelowTheirYardsticks) {
  EXPECT_EQ(format_bench(some_optimizer_bench()),
            "100000000 fp32 elements, 2 threads, avx512, buffers of 2.00 GiB "
            "with 1.00 GiB in huge pages\n"
            "median of 7 rounds (smallest to largest); GB/s of bytes read and "
            "written\n"
            "\n"
            "       bytes/element      ms  GB/s     spread  x plain loop  "
            "x copy\n"
            "-----  -------------  ------  ----  ---------  ------------  "
            "------\n"
            "copy               8   40.00  20.0  16.0-26.7                "
            "  1.00\n"
            "-----  -------------  ------  ----  ---------  ------------  "
            "------\n"
            "AdamW             28  100.00  28.0  14.0-28.0          0.95  "
            "  1.40\n");
}

TEST(BenchTable, JsonHasEveryFigure) {
  const auto json = nlohmann::json::parse(bench_json(some_optimizer_bench()));
  EXPECT_EQ(json["numel"], 100000000);
  EXPECT_EQ(json["rows"][1]["name"], "AdamW");
  EXPECT_EQ(json["rows"][1]["bytes_read"], 16);
  EXPECT_EQ(json["rows"][1]["by_plain_loop"]["min"], 0.9);
}

TEST(BenchTable, CollectivesAreGroupedBySize) {
  const bench::CollectiveRow row{.collective = Collective::kAllGather,
                                 .transport = "gloo",
                                 .size_bytes = 1 << 16,
                                 .moved_bytes = 1 << 15,
                                 .seconds = {0.001, 0.0005, 0.002},
                                 .gb_per_second = {0.033, 0.016, 0.066},
                                 .copy_gb_per_second = {10, 9, 11},
                                 .by_copy = {0.0033, 0.002, 0.004}};
  bench::CollectiveRow odd = row;
  odd.collective = Collective::kBroadcast;
  odd.size_bytes = 65532;
  const CollectivesAbout about{
      .num_ranks = 3, .num_threads = 1, .num_rounds = 1};
  const std::string text = format_bench({row, odd}, about);
  EXPECT_THAT(text, HasSubstr("3 ranks x 1 thread, fp32, median of 1 round "));
  EXPECT_THAT(text, HasSubstr("all_gather   64 KiB       gloo  1.000  0.03"));
  EXPECT_THAT(text, HasSubstr("---\nbroadcast   65532 B"));
  const auto json = nlohmann::json::parse(bench_json({row, odd}, about));
  EXPECT_EQ(json["ranks"], 3);
  EXPECT_EQ(json["rows"][1]["collective"], "broadcast");
  EXPECT_EQ(json["rows"][1]["size_bytes"], 65532);
}

}  // namespace
}  // namespace nfold::train
