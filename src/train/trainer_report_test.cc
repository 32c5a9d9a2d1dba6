#include "train/trainer_report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace nfold::train {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

MemoryReport memory(std::int64_t params_bytes) {
  MemoryReport report;
  report.params_bytes = params_bytes;
  report.grads_bytes = 1024;
  report.optimizer_bytes = 2048;
  return report;
}

TEST(TrainerReportTest, FewRanksHaveAColumnEach) {
  EXPECT_THAT(memory_table({memory(1024), memory(2048)}, memory(1 << 20)),
              AllOf(HasSubstr("rank 0"), HasSubstr("rank 1"),
                    HasSubstr("one process"), HasSubstr("4.00 KiB"),
                    HasSubstr("5.00 KiB"), HasSubstr("1.00 MiB")));
}

TEST(TrainerReportTest, ManyRanksAreSmallestAndLargest) {
  std::vector<MemoryReport> ranks;
  for (int i = 1; i <= 6; ++i) ranks.push_back(memory(i * 1024));
  EXPECT_THAT(memory_table(ranks, memory(1)),
              AllOf(HasSubstr("smallest rank"), HasSubstr("6.00 KiB"),
                    Not(HasSubstr("rank 3"))));
  EXPECT_EQ(largest_of(ranks).params_bytes, 6 * 1024);
}

TEST(TrainerReportTest, CollectivesThatNeverRanAreLeftOut) {
  CommCounts counts{};
  counts[static_cast<std::size_t>(Collective::kAllGather)] = {10, 10 << 20};
  EXPECT_THAT(comm_table(counts, 10),
              AllOf(HasSubstr("all_gather"), HasSubstr("10.0 MiB"),
                    HasSubstr("1.00 MiB"), Not(HasSubstr("broadcast"))));
}

}  // namespace
}  // namespace nfold::train
