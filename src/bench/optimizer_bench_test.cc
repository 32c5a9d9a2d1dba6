#include "bench/optimizer_bench.h"

#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <map>

namespace nfold::bench {
namespace {

TEST(OptimizerBenchTest, RatesFollowFromBytesAndTimes) {
  constexpr std::int64_t kNumel = 5000;
  const OptimizerBench bench =
      bench_optimizer({.numel = kNumel, .num_rounds = 1});
  EXPECT_EQ(bench.numel, kNumel);
  EXPECT_EQ(bench.buffer_bytes, 20 * kNumel);
  ASSERT_FALSE(bench.rows.empty());
  const KernelRow& copy = bench.rows[0];
  EXPECT_EQ(copy.name, "copy");
  EXPECT_NEAR(copy.by_copy.median, 1, 1e-9);
  for (const KernelRow& row : bench.rows) {
    // Exact for one round: the median of one ratio is that ratio.
    const double gb = static_cast<double>(kNumel) * row.bytes.total() / 1e9;
    EXPECT_NEAR(row.gb_per_second.median * row.seconds.median, gb, gb * 1e-9)
        << row.name;
    EXPECT_NEAR(row.by_copy.median,
                row.gb_per_second.median / copy.gb_per_second.median,
                1e-9 * row.by_copy.median)
        << row.name;
    if (row.is_yardstick) {
      EXPECT_NEAR(row.by_plain_loop.median, 1, 1e-9);
    }
  }
}

TEST(OptimizerBenchTest, BytesAreThoseOfTheFormulas) {
  std::map<std::string, int> bytes;
  const OptimizerBench bench = bench_optimizer({.numel = 100, .num_rounds = 1});
  for (const KernelRow& row : bench.rows) bytes[row.name] = row.bytes.total();
  // Reads weights, gradient and two moments, writes all but the gradient.
  EXPECT_EQ(bytes.at("AdamW"), 28);
  EXPECT_EQ(bytes.at("torch _fused_adamw_"), 28);
  EXPECT_EQ(bytes.at("AdamW, bf16 gradient and copy"), 28);
  EXPECT_EQ(bytes.at("SGD with momentum"), 20);
  EXPECT_EQ(bytes.at("norm and non-finite"), 4);
  EXPECT_EQ(bytes.at("sum of 4, in place"), 20);
  EXPECT_EQ(bytes.at("cast fp32 to bf16"), 6);
}

TEST(OptimizerBenchTest, NeedsElementsAndRounds) {
  EXPECT_THROW(bench_optimizer({.numel = 0}), c10::ValueError);
  EXPECT_THROW(bench_optimizer({.numel = 10, .num_rounds = 0}),
               c10::ValueError);
}

}  // namespace
}  // namespace nfold::bench
