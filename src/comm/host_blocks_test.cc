#include "comm/host_blocks.h"

#include <gtest/gtest.h>

namespace nfold {
namespace {

using Hosts = std::vector<std::string>;

TEST(HostBlocks, AreEquallyManyNeighboursOnEachHost) {
  EXPECT_EQ(host_blocks(Hosts{"a", "a", "b", "b"}), (HostBlocks{2, 2}));
  EXPECT_EQ(host_blocks(Hosts{"b", "b", "b", "a", "a", "a"}),
            (HostBlocks{2, 3}));
  EXPECT_EQ(host_blocks(Hosts{"a", "a", "b", "b", "c", "c"}),
            (HostBlocks{3, 2}));
}

TEST(HostBlocks, NeedSeveralHostsWithSeveralRanks) {
  EXPECT_FALSE(host_blocks(Hosts{"a"}));
  EXPECT_FALSE(host_blocks(Hosts{"a", "a", "a", "a"}));
  EXPECT_FALSE(host_blocks(Hosts{"a", "b", "c"}));
}

TEST(HostBlocks, AreNotMadeOfWhatIsIrregular) {
  EXPECT_FALSE(host_blocks(Hosts{"a", "b", "a", "b"}));
  EXPECT_FALSE(host_blocks(Hosts{"a", "a", "b"}));
  EXPECT_FALSE(host_blocks(Hosts{"a", "a", "a", "b"}));
  EXPECT_FALSE(host_blocks(Hosts{"a", "b", "b", "b", "a", "a"}));
  EXPECT_FALSE(host_blocks(Hosts{"a", "a", "b", "b", "a", "a"}));
}

TEST(HostBlocks, CombineAloneWhereTheOrderOfASumStaysTheSame) {
  for (const auto dtype : {c10::kFloat, c10::kDouble}) {
    EXPECT_TRUE(combines_by_host({3, 2}, ReduceOp::kSum, dtype));
    EXPECT_TRUE(combines_by_host({2, 8}, ReduceOp::kSum, dtype));
    EXPECT_FALSE(combines_by_host({2, 3}, ReduceOp::kSum, dtype));
    EXPECT_FALSE(combines_by_host({4, 6}, ReduceOp::kSum, dtype));
    EXPECT_TRUE(combines_by_host({2, 3}, ReduceOp::kMax, dtype));
  }
  for (const auto dtype : {c10::kHalf, c10::kBFloat16}) {
    EXPECT_FALSE(combines_by_host({2, 2}, ReduceOp::kSum, dtype))
        << "it would be rounded twice";
    EXPECT_TRUE(combines_by_host({2, 2}, ReduceOp::kMax, dtype));
  }
  for (const auto dtype : {c10::kChar, c10::kByte, c10::kInt, c10::kLong}) {
    EXPECT_TRUE(combines_by_host({2, 3}, ReduceOp::kSum, dtype));
  }
}

}  // namespace
}  // namespace nfold
