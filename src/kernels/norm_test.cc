#include "kernels/norm.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "kernels/kernel_testing.h"

namespace nfold::kernels {
namespace {

const at::ScalarType kNormDtypes[] = {at::kFloat, at::kDouble, at::kHalf,
                                      at::kBFloat16};

TEST(NormSquared, AddsSquaresInFp64) {
  std::mt19937 random(1);
  for (const at::ScalarType dtype : kNormDtypes) {
    for (const std::int64_t numel : {0, 1, 31, 32, 33, 4096, 4097, 100003}) {
      const at::Tensor x = awkward_tensor(numel, dtype, random, false);
      const double expected = x.to(at::kDouble).square().sum().item<double>();
      const NormResult result = norm_squared(x);
      EXPECT_NEAR(result.sum_of_squares.value(), expected, 1e-12 * expected)
          << dtype << " " << numel;
      EXPECT_EQ(result.first_non_finite, -1);
    }
  }
}

TEST(NormSquared, PiecesInAnyOrderGiveTheBitsOfTheWhole) {
  std::mt19937 random(2);
  for (const at::ScalarType dtype : kNormDtypes) {
    for (const std::int64_t numel : {2, 7, 1023, 100003}) {
      const at::Tensor x = awkward_tensor(numel, dtype, random, false);
      const double whole = norm_squared(x).sum_of_squares.value();
      for (const std::int64_t pieces : {2, 3, 5, 8}) {
        CompensatedSum sum;
        for (std::int64_t piece = pieces; piece-- > 0;) {
          const auto begin = numel * piece / pieces;
          const auto end = numel * (piece + 1) / pieces;
          sum.add(norm_squared(x.narrow(0, begin, end - begin).contiguous())
                      .sum_of_squares);
        }
        EXPECT_EQ(sum.value(), whole) << dtype << " " << numel << " " << pieces;
      }
    }
  }
}

TEST(NormSquared, SmallSquaresAreNotLostBesideALargeOne) {
  const at::Tensor x = at::full({1 << 20}, 1e-4F);
  x[0] = 1e4F;
  const double small = static_cast<double>(1e-4F);
  // In fp32 the sum would stay at 1e8.
  const double expected = 1e8 + ((1 << 20) - 1) * small * small;
  EXPECT_NEAR(norm_squared(x).sum_of_squares.value(), expected, 1e-5);
}

TEST(NormSquared, FindsTheFirstNonFiniteElement) {
  const double infinity = std::numeric_limits<double>::infinity();
  for (const at::ScalarType dtype : kNormDtypes) {
    const at::Tensor x = at::ones({20000}, dtype);
    x[15000] = -infinity;
    x[19999] = std::nan("");
    EXPECT_EQ(norm_squared(x).first_non_finite, 15000) << dtype;
    x[4096] = std::nan("");
    const NormResult result = norm_squared(x);
    EXPECT_EQ(result.first_non_finite, 4096) << dtype;
    EXPECT_FALSE(std::isfinite(result.sum_of_squares.value())) << dtype;
  }
}

TEST(NormSquared, LargeFiniteElementsAreNoOverflow) {
  // Their fp32 sum would be infinite.
  const at::Tensor x = at::full({2}, 3e38F);
  const NormResult result = norm_squared(x);
  EXPECT_EQ(result.first_non_finite, -1);
  EXPECT_TRUE(std::isfinite(result.sum_of_squares.value()));
}

TEST(NormSquared, OnlySquaresThatExceedFp64AreInfiniteWithoutAnIndex) {
  const NormResult result = norm_squared(at::full({3}, 1e200, at::kDouble));
  EXPECT_EQ(result.first_non_finite, -1);
  EXPECT_TRUE(std::isinf(result.sum_of_squares.value()));
}

TEST(NormSquared, OtherDtypesAreRejected) {
  EXPECT_THROW(norm_squared(at::zeros({3}, at::kInt)),
               c10::NotImplementedError);
  EXPECT_THROW(norm_squared(at::Tensor()), c10::ValueError);
}

}  // namespace
}  // namespace nfold::kernels
