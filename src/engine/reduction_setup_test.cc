#include "engine/reduction_setup.h"

#include <gtest/gtest.h>

namespace nfold {
namespace {

TEST(OverlapOfReduction, IsWhatTheConfigurationSays) {
  for (const bool is_wanted : {false, true}) {
    for (const bool shares_memory : {false, true}) {
      for (const std::int64_t stage : {0, 1, 2, 3}) {
        ZeroConfig zero;
        zero.stage = stage;
        zero.overlap_comm = is_wanted;
        EXPECT_EQ(overlaps_backward(zero, {shares_memory, 2, 2}), is_wanted);
        EXPECT_EQ(overlaps_backward(zero, {shares_memory, 1, 8}), is_wanted);
      }
    }
  }
}

TEST(OverlapOfReduction, IsForStage3WhereSomethingElseCanCarry) {
  ZeroConfig zero;
  for (const std::int64_t stage : {0, 1, 2}) {
    zero.stage = stage;
    EXPECT_FALSE(overlaps_backward(zero, {false, 1, 8}));
    EXPECT_FALSE(overlaps_backward(zero, {true, 1, 8}));
  }
  zero.stage = 3;
  EXPECT_TRUE(overlaps_backward(zero, {false, 2, 2})) << "a network";
  EXPECT_TRUE(overlaps_backward(zero, {true, 2, 3})) << "a spare core";
  EXPECT_FALSE(overlaps_backward(zero, {true, 2, 2}));
  EXPECT_FALSE(overlaps_backward(zero, {true, 8, 2}));
}

}  // namespace
}  // namespace nfold
