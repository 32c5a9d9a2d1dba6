#include "kernels/non_finite.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <limits>

namespace nfold::kernels {
namespace {

TEST(NonFiniteTest, FindsTheFirstOfAnyKindInEveryDtype) {
  const double inf = std::numeric_limits<double>::infinity();
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (auto dtype : {at::kFloat, at::kDouble, at::kHalf, at::kBFloat16}) {
    for (double value : {inf, -inf, nan}) {
      for (std::int64_t at : {0, 1, 4095, 4096, 9999}) {
        auto x = torch::randn({10000}).to(dtype);
        EXPECT_EQ(first_non_finite(x), -1);
        x[9999] = inf;
        x[at] = value;
        EXPECT_EQ(first_non_finite(x), at);
      }
    }
  }
}

TEST(NonFiniteTest, LargestFiniteAndSmallestSubnormalAreFinite) {
  EXPECT_EQ(first_non_finite(torch::tensor(
                {std::numeric_limits<float>::max(),
                 -std::numeric_limits<float>::max(),
                 std::numeric_limits<float>::denorm_min(), 0.0f, -0.0f})),
            -1);
  EXPECT_EQ(first_non_finite(torch::empty({0})), -1);
}

TEST(NonFiniteTest, OtherDtypesAndLayoutsAreRejected) {
  EXPECT_THROW(first_non_finite(torch::ones({3}, at::kLong)),
               c10::NotImplementedError);
  EXPECT_THROW(first_non_finite(torch::ones({3, 3})), c10::ValueError);
}

}  // namespace
}  // namespace nfold::kernels
