#include "bench/collectives_bench.h"

#include <c10/util/Exception.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "testing/raised_text.h"
#include "testing/thread_world.h"

namespace nfold::bench {
namespace {

using ::testing::HasSubstr;

TEST(CollectivesBenchTest, BytesAreThoseThatARankSends) {
  constexpr std::int64_t kSize = 4096;
  EXPECT_EQ(moved_bytes(Collective::kAllGather, kSize, 4), 3072);
  EXPECT_EQ(moved_bytes(Collective::kReduceScatter, kSize, 4), 3072);
  EXPECT_EQ(moved_bytes(Collective::kAllToAll, kSize, 4), 3072);
  EXPECT_EQ(moved_bytes(Collective::kAllReduce, kSize, 4), 6144);
  EXPECT_EQ(moved_bytes(Collective::kBroadcast, kSize, 4), 4096);
  EXPECT_EQ(moved_bytes(Collective::kAllReduce, kSize, 2), 4096);
}

TEST(CollectivesBenchTest, SizesAreWholeElementsForEveryRank) {
  EXPECT_EQ(whole_size(1 << 16, 2), 1 << 16);
  EXPECT_EQ(whole_size(1 << 16, 3), 65532);
  EXPECT_EQ(whole_size(11, 3), 0);
}

// The counters of the group are what the formula is checked by.
TEST(CollectivesBenchTest, FormulaAgreesWithWhatIsCounted) {
  run_ranks(2, [](World& world) {
    const CollectivesBenchOptions options{
        .sizes = {1 << 16},
        .collectives = {Collective::kAllGather},
        .num_rounds = 1};
    bench_collectives(world, options);
    const CommCount count =
        world.group()
            .counts()[static_cast<std::size_t>(Collective::kAllGather)];
    ASSERT_GT(count.calls, 0);
    EXPECT_EQ(count.bytes / count.calls,
              moved_bytes(Collective::kAllGather, 1 << 16, 2));
  });
}

TEST(CollectivesBenchTest, EveryRankGetsARowForEachSizeAndCollective) {
  run_ranks(3, [](World& world) {
    CollectivesBenchOptions options;
    options.sizes = {1 << 12, 1 << 14};
    options.num_rounds = 1;
    const auto rows = bench_collectives(world, options);
    ASSERT_GE(rows.size(), 10u);
    EXPECT_EQ(rows[0].size_bytes, 4092);
    EXPECT_EQ(rows[0].transport, world.group().transport());
    EXPECT_EQ(rows.back().transport, "torch");
    for (const CollectiveRow& row : rows) {
      EXPECT_GT(row.seconds.median, 0);
      const double gb = static_cast<double>(row.moved_bytes) / 1e9;
      EXPECT_NEAR(row.gb_per_second.median * row.seconds.median, gb, gb * 1e-9);
      EXPECT_NEAR(row.by_copy.median,
                  row.gb_per_second.median / row.copy_gb_per_second.median,
                  1e-9 * row.by_copy.median);
      EXPECT_FALSE(row.transport.empty());
    }
  });
}

TEST(CollectivesBenchTest, SaysWhatItNeeds) {
  run_ranks(1, [](World& world) {
    EXPECT_THAT(text_of<c10::ValueError>([&] { bench_collectives(world, {}); }),
                HasSubstr("--nproc 2"));
  });
  run_ranks(2, [](World& world) {
    EXPECT_THAT(text_of<c10::ValueError>(
                    [&] { bench_collectives(world, {.sizes = {4}}); }),
                HasSubstr("expected at least 8"));
    EXPECT_THAT(text_of<c10::ValueError>([&] {
                  bench_collectives(
                      world,
                      {.sizes = {64}, .collectives = {Collective::kBarrier}});
                }),
                HasSubstr("barrier moves no bytes"));
  });
}

}  // namespace
}  // namespace nfold::bench
