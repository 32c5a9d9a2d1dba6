#include "comm/collectives_call.h"

#include <gtest/gtest.h>

namespace nfold {
namespace {

CollectiveCall call_of_test() {
  CollectiveCall call;
  call.kind = Collective::kReduceScatter;
  call.dtype = c10::ScalarType::BFloat16;
  call.numel = 4096;
  call.sequence = 17;
  return call;
}

TEST(CollectiveCall, IsDescribed) {
  CollectiveCall call = call_of_test();
  EXPECT_EQ(describe(call), "reduce_scatter #17 of 4096 bfloat16");
  call.num_tensors = 3;
  call.op = ReduceOp::kMax;
  EXPECT_EQ(describe(call),
            "reduce_scatter #17 of 4096 bfloat16 in 3 tensors (max)");
  CollectiveCall barrier;
  EXPECT_EQ(describe(barrier), "barrier #0");
}

TEST(CollectiveCall, EmptyContributionIsNoDifference) {
  CollectiveCall a = call_of_test();
  CollectiveCall b = a;
  b.is_empty = true;
  EXPECT_FALSE(differs(a, b));
  EXPECT_EQ(message_tag_of(a), message_tag_of(b));
}

TEST(CollectiveCall, MessageTagsAreFewAndNeverThatOfCalls) {
  CollectiveCall a = call_of_test();
  CollectiveCall b = a;
  b.sequence = 18;
  b.tag = 5;
  EXPECT_TRUE(differs(a, b));
  EXPECT_EQ(message_tag_of(a), message_tag_of(b));
  EXPECT_GE(message_tag_of(a), 2);
  EXPECT_EQ(message_tag_of(a) % 2, 0);
  b.numel = 4097;
  EXPECT_NE(message_tag_of(a), message_tag_of(b));
}

}  // namespace
}  // namespace nfold
