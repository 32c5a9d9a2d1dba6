#include "base/process_memory.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

namespace nfold {
namespace {

constexpr std::int64_t kMiB = 1 << 20;

// A sanitizer keeps freed memory and adds its own.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SKIP_UNDER_SANITIZER() GTEST_SKIP() << "memory is the sanitizer's"
#else
#define SKIP_UNDER_SANITIZER() static_cast<void>(0)
#endif

TEST(ProcessMemory, SeesWhatIsTouchedAndRemembersThePeak) {
  SKIP_UNDER_SANITIZER();
  const ProcessMemory before = process_memory();
  ASSERT_GT(before.rss_bytes, 0);
  {
    const auto block = torch::ones({64 * kMiB / 4});
    EXPECT_GE(process_memory().rss_bytes, before.rss_bytes + 56 * kMiB);
  }
  const ProcessMemory after = process_memory();
  EXPECT_LT(after.rss_bytes, before.rss_bytes + 32 * kMiB);
  EXPECT_GE(after.peak_rss_bytes, before.rss_bytes + 56 * kMiB);
}

TEST(ProcessMemory, PeakStartsAgain) {
  SKIP_UNDER_SANITIZER();
  { const auto block = torch::ones({64 * kMiB / 4}); }
  if (!reset_peak_rss()) GTEST_SKIP() << "the system does not allow it";
  const ProcessMemory memory = process_memory();
  EXPECT_LT(memory.peak_rss_bytes, memory.rss_bytes + 32 * kMiB);
}

}  // namespace
}  // namespace nfold
