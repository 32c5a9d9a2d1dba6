#include "nfold/comparison.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <string>
#include <vector>

#include "testing/raised_text.h"

namespace nfold {
namespace {

using ::testing::HasSubstr;

TEST(IsClose, IsRelativeToTheLargerNumber) {
  EXPECT_TRUE(isclose(1, 1 + 1e-10));
  EXPECT_FALSE(isclose(1, 1.001));
  EXPECT_TRUE(isclose(1e12, 1e12 + 1));
  EXPECT_FALSE(isclose(0, 1e-12));
  EXPECT_TRUE(isclose(0, 1e-12, 1e-9, 1e-10));
  const double infinity = std::numeric_limits<double>::infinity();
  EXPECT_TRUE(isclose(infinity, infinity));
  EXPECT_FALSE(isclose(infinity, 1));
  EXPECT_FALSE(isclose(std::nan(""), std::nan("")));
}

TEST(OnlyUniqueItem, IsTheOneThatAllAre) {
  EXPECT_EQ(get_only_unique_item(std::vector<int>{1, 1, 1}), 1);
  EXPECT_EQ(get_only_unique_item(std::vector<std::string>{"a"}), "a");
  // A generator, so to speak.
  EXPECT_EQ(
      get_only_unique_item(std::views::iota(4, 7) |
                           std::views::transform([](int i) { return i / 4; })),
      1);
}

TEST(OnlyUniqueItem, NoneOrSeveralAreAnError) {
  EXPECT_THROW(get_only_unique_item(std::vector<int>{}), c10::ValueError);
  EXPECT_THAT(text_of<c10::ValueError>(
                  [] { get_only_unique_item(std::vector<int>{1, 1, 2}); }),
              HasSubstr("item 2 differs"));
}

}  // namespace
}  // namespace nfold
