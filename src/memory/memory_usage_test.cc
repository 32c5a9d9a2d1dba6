#include "nfold/memory_usage.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <thread>

#include "base/log.h"
#include "nfold/host_memory.h"

namespace nfold {
namespace {

using ::testing::ContainsRegex;
using ::testing::EndsWith;
using ::testing::HasSubstr;

constexpr std::int64_t kGib = std::int64_t{1} << 30;
constexpr std::int64_t kMib = std::int64_t{1} << 20;

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kMemoryIsTheSanitizers = true;
#else
constexpr bool kMemoryIsTheSanitizers = false;
#endif

// What `body` logs as one rank of several.
std::string logged_by(int rank, const std::function<void()>& body) {
  testing::internal::CaptureStderr();
  std::thread([&] {
    set_log_rank(rank, 4);
    body();
  }).join();
  return testing::internal::GetCapturedStderr();
}

TEST(MemoryUsage, IsThatOfProcessCacheAndHost) {
  const auto before = memory_usage();
  EXPECT_GT(before.allocated_bytes, 0);
  EXPECT_GE(before.max_allocated_bytes, before.allocated_bytes);
  EXPECT_GT(before.host_used_bytes, 0);
  EXPECT_LT(before.host_used_bytes, before.host_total_bytes);
  if (kMemoryIsTheSanitizers) GTEST_SKIP() << "memory is the sanitizer's";
  const auto held = at::ones({64 * kMib / 4});
  EXPECT_GE(memory_usage().allocated_bytes, before.allocated_bytes + 56 * kMib);
}

TEST(MemoryUsage, EmptyingTheCacheGivesItBackAndResetsItsPeak) {
  if (!enable_host_cache()) GTEST_SKIP() << "no cache with a sanitizer";
  { const auto freed = at::ones({64 * kMib / 4}); }
  const auto kept = memory_usage();
  EXPECT_GE(kept.cached_bytes, 64 * kMib);
  empty_cache();
  const auto after = memory_usage();
  EXPECT_LE(after.cached_bytes, kept.cached_bytes - 64 * kMib);
  EXPECT_EQ(after.max_cached_bytes, after.cached_bytes);
}

TEST(MemoryStatus, TextHasFourDecimalsAndTheChange) {
  const MemoryUsage previous{.allocated_bytes = 2 * kGib,
                             .cached_bytes = kGib / 2};
  const MemoryUsage usage{.allocated_bytes = kGib + kGib / 4,
                          .max_allocated_bytes = 3 * kGib,
                          .cached_bytes = kGib,
                          .max_cached_bytes = kGib};
  EXPECT_EQ(memory_status_text("step 3", usage, previous),
            "step 3: alloc 1.2500 GiB (delta -0.7500, max 3.0000), "
            "cache 1.0000 GiB (delta 0.5000, max 1.0000)");
}

TEST(MemoryStatus, OnlyTheRankAskedForWrites) {
  EXPECT_THAT(logged_by(2, [] { memory_status("x"); }),
              HasSubstr("[rank 2] x: alloc "));
  EXPECT_THAT(logged_by(2, [] { memory_status("x", {.print_rank = 2}); }),
              HasSubstr("[rank 2] x: alloc "));
  EXPECT_EQ(logged_by(2, [] { memory_status("x", {.print_rank = 0}); }), "");
}

TEST(MemoryStatus, DeltasAreThoseSinceTheLastCall) {
  if (kMemoryIsTheSanitizers) GTEST_SKIP() << "memory is the sanitizer's";
  logged_by(0, [] { memory_status("before"); });
  const auto held = at::ones({256 * kMib / 4});
  EXPECT_THAT(logged_by(0, [] { memory_status("after", {.reset_max = true}); }),
              ContainsRegex("delta 0\\.2[0-9]+,"));
  EXPECT_THAT(logged_by(0, [] { memory_status("again"); }),
              ContainsRegex("delta -?0\\.0[0-9]+,"));
}

TEST(SeeMemoryUsage, TextHasTwoDecimalsAndTheHost) {
  const MemoryUsage usage{.allocated_bytes = kGib + kGib / 4,
                          .max_allocated_bytes = 3 * kGib,
                          .cached_bytes = kGib / 2,
                          .max_cached_bytes = kGib,
                          .host_total_bytes = 8 * kGib,
                          .host_used_bytes = 2 * kGib};
  EXPECT_EQ(memory_usage_text("built", usage),
            "built: MA 1.25 GiB, Max_MA 3.00 GiB, CA 0.50 GiB, "
            "Max_CA 1.00 GiB, host used 2.00 GiB (25.0%)");
}

TEST(SeeMemoryUsage, IsSilentUnlessForcedAndOnOtherRanks) {
  EXPECT_EQ(logged_by(0, [] { see_memory_usage("x"); }), "");
  EXPECT_EQ(logged_by(1, [] { see_memory_usage("x", true); }), "");
  EXPECT_THAT(logged_by(0, [] { see_memory_usage("x", true); }),
              EndsWith("%)\n"));
}

TEST(MemoryReports, ResetThePeaks) {
  if (kMemoryIsTheSanitizers) GTEST_SKIP() << "memory is the sanitizer's";
  const std::function<void()> reports[] = {
      [] { see_memory_usage("x", true); },
      [] { memory_status("x", {.reset_max = true}); }};
  for (const auto& report : reports) {
    {
      const auto freed = at::ones({256 * kMib / 4});
    }
    empty_cache();
    { const auto freed = at::ones({256 * kMib / 4}); }
    release_host_cache();
    if (!reset_peak_memory()) GTEST_SKIP() << "the system does not allow it";
    { const auto freed = at::ones({256 * kMib / 4}); }
    release_host_cache();
    const auto before = memory_usage();
    EXPECT_GE(before.max_allocated_bytes, before.allocated_bytes + 200 * kMib);
    logged_by(0, report);
    EXPECT_LE(memory_usage().max_allocated_bytes,
              before.max_allocated_bytes - 100 * kMib);
  }
}

TEST(MaStatus, IsThatOfRankZeroOnly) {
  std::int64_t first = 0;
  std::int64_t other = -1;
  logged_by(0, [&] { first = get_ma_status(); });
  logged_by(1, [&] { other = get_ma_status(); });
  EXPECT_GT(first, 0);
  EXPECT_EQ(other, 0);
}

}  // namespace
}  // namespace nfold
