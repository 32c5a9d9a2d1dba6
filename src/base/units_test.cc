#include "base/units.h"

#include <gtest/gtest.h>

namespace nfold {
namespace {

TEST(HumanBytes, HasThreeDigitsInBinaryUnits) {
  EXPECT_EQ(human_bytes(0), "0 B");
  EXPECT_EQ(human_bytes(1023), "1023 B");
  EXPECT_EQ(human_bytes(1024), "1.00 KiB");
  EXPECT_EQ(human_bytes(15 << 20), "15.0 MiB");
  EXPECT_EQ(human_bytes(150ll << 30), "150 GiB");
  EXPECT_EQ(human_bytes(1610612736), "1.50 GiB");
  EXPECT_EQ(human_bytes(-2048), "-2.00 KiB");
}

TEST(HumanBytes, NeverRoundsUpToAWholeNextUnit) {
  EXPECT_EQ(human_bytes((1ll << 20) - 1), "1.00 MiB");
  EXPECT_EQ(human_bytes(10 * 1024 - 1), "10.0 KiB");
}

TEST(HumanCount, HasThreeDigitsInDecimalUnits) {
  EXPECT_EQ(human_count(999), "999");
  EXPECT_EQ(human_count(1500), "1.50 k");
  EXPECT_EQ(human_count(10312000), "10.3 M");
  EXPECT_EQ(human_count(999999), "1.00 M");
  EXPECT_EQ(human_count(2000000000), "2.00 B");
  EXPECT_EQ(human_count(5000000000000000), "5000 T");
}

}  // namespace
}  // namespace nfold
