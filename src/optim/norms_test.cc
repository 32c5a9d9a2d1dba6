#include "nfold/norms.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace nfold {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

TEST(CombineNorms, IsTheRootOfTheSumOfSquares) {
  EXPECT_EQ(combine_norms({3, 4}), 5);
  EXPECT_EQ(combine_norms({}), 0);
  EXPECT_EQ(combine_norms({1, 2, 2}), 3);
}

TEST(CombineNorms, AnInvalidNormIsNeverTakenForASmallOne) {
  // -1 squared would be 1.
  EXPECT_EQ(combine_norms({3, kInvalidNorm}), kInf);
  EXPECT_EQ(combine_norms({kInf, 1}), kInf);
  EXPECT_EQ(combine_norms({1, std::nan("")}), kInf);
  EXPECT_FALSE(is_valid_norm(combine_norms({1, -1})));
  EXPECT_TRUE(is_valid_norm(combine_norms({1, 2})));
}

TEST(CombineNorms, OtherPowersAndTheMaximum) {
  EXPECT_DOUBLE_EQ(combine_norms({1, 2, 3}, 1), 6);
  EXPECT_DOUBLE_EQ(combine_norms({1, 2, 3}, 3), std::cbrt(36));
  EXPECT_EQ(combine_norms({3, 4}, kInf), 4);
  EXPECT_EQ(combine_norms({3, kInvalidNorm}, kInf), kInf);
  EXPECT_THROW(combine_norms({1}, 0), c10::ValueError);
}

TEST(NormOf, CountsEveryTensorOnce) {
  const auto a = at::tensor({3.0F, 4.0F});
  const auto b = at::tensor({12.0F});
  EXPECT_EQ(norm_of({a, b}), 13);
  EXPECT_EQ(norm_of({a, at::Tensor(), at::zeros({0})}), 5);
  EXPECT_EQ(norm_of({at::tensor({3.0F, -4.0F}), b}, kInf), 12);
  EXPECT_EQ(norm_of({}), 0);
}

TEST(NormOf, TakesThePowerOfEveryTensor) {
  // Squares whatever p is would give another number.
  const auto a = at::tensor({1.0F, -2.0F});
  const auto b = at::tensor({3.0F});
  EXPECT_DOUBLE_EQ(norm_of({a, b}, 1), 6);
  EXPECT_DOUBLE_EQ(norm_of({a, b}, 3), std::cbrt(1 + 8 + 27));
}

TEST(NormOf, NonFiniteElementsMakeItInvalid) {
  const auto fine = at::tensor({3.0F, 4.0F});
  for (const double bad : {kInf, -kInf, std::nan("")}) {
    const auto tensor = at::tensor({1.0F, static_cast<float>(bad)});
    for (const double p : {1.0, 2.0, 3.0, kInf}) {
      EXPECT_EQ(norm_of({fine, tensor}, p), kInvalidNorm) << bad << " " << p;
      EXPECT_EQ(norm_of({tensor, fine}, p), kInvalidNorm) << bad << " " << p;
    }
  }
}

TEST(NormOf, LargeFiniteElementsAreValid) {
  EXPECT_TRUE(is_valid_norm(norm_of({at::full({2}, 3e38F)})));
}

TEST(NormOf, ReadsStridedAndSixteenBitTensors) {
  const auto strided = at::tensor({3.0F, 9.0F, 4.0F, 9.0F}).view({2, 2});
  EXPECT_EQ(norm_of({strided.select(1, 0)}), 5);
  EXPECT_EQ(norm_of({at::tensor({3.0F, 4.0F}).to(at::kBFloat16)}), 5);
}

TEST(NormOf, AddsInDoublePrecision) {
  // In fp32 each of the ones would be lost beside 1e8.
  std::vector<at::Tensor> tensors{at::tensor({1e4F})};
  for (int i = 0; i < 64; ++i) tensors.push_back(at::ones({1}));
  EXPECT_DOUBLE_EQ(norm_of(tensors), std::sqrt(1e8 + 64));
  EXPECT_DOUBLE_EQ(norm_of({at::cat(tensors)}), std::sqrt(1e8 + 64));
  EXPECT_DOUBLE_EQ(norm_of(tensors, 3), std::cbrt(1e12 + 64));
}

TEST(MaskNanOrInf, ReplacesInPlace) {
  const auto nan = std::nanf("");
  const auto inf = static_cast<float>(kInf);
  const auto tensor = at::tensor({1.0F, inf, nan, -inf});
  const auto copy = tensor.clone();
  mask_nan_or_inf(tensor);
  EXPECT_TRUE(at::equal(tensor, at::tensor({1.0F, -1.0F, -1.0F, -1.0F})));
  mask_nan_or_inf(copy, 7);
  EXPECT_TRUE(at::equal(copy, at::tensor({1.0F, 7.0F, 7.0F, 7.0F})));
}

TEST(NormOf, RejectsAPowerThatIsNone) {
  EXPECT_THROW(norm_of({}, 0), c10::ValueError);
  EXPECT_THROW(norm_of({}, -1), c10::ValueError);
}

TEST(IsValidNorm, OnlyFiniteNumbersFromZeroOn) {
  EXPECT_TRUE(is_valid_norm(0));
  EXPECT_TRUE(is_valid_norm(1e300));
  EXPECT_FALSE(is_valid_norm(-1));
  EXPECT_FALSE(is_valid_norm(kInf));
  EXPECT_FALSE(is_valid_norm(std::nan("")));
}

}  // namespace
}  // namespace nfold
