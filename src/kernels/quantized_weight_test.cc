#include "nfold/quantized_weight.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <cmath>

namespace nfold {
namespace {

TEST(QuantizedWeight, IsOffByHalfALevelOfItsGroup) {
  at::manual_seed(1);
  for (const int num_bits : {8, 4}) {
    for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
      for (const std::int64_t dim : {0, 1, 2}) {
        const auto weight = at::randn({12, 24, 36}).to(dtype);
        const QuantizedWeight coded(
            weight, {.num_bits = num_bits, .group_size = 6, .group_dim = dim});
        const auto about = coded.dequantized();
        ASSERT_EQ(about.sizes(), weight.sizes());
        ASSERT_EQ(about.scalar_type(), dtype);
        const auto groups = weight.to(at::kDouble).unfold(dim, 6, 6);
        const auto range = groups.amax(-1) - groups.amin(-1);
        const auto error = (about.to(at::kDouble) - weight.to(at::kDouble))
                               .abs()
                               .unfold(dim, 6, 6)
                               .amax(-1);
        const double rounding = dtype == at::kFloat ? 1e-5 : 0.02;
        const auto bound = range / (2 * (std::pow(2, num_bits) - 1)) + rounding;
        EXPECT_TRUE((error <= bound).all().item<bool>())
            << num_bits << " bits along " << dim << " of " << dtype;
      }
    }
  }
}

TEST(QuantizedWeight, TakesItsBytes) {
  const auto weight = at::zeros({64, 128});
  EXPECT_EQ(QuantizedWeight(weight, {8, 64, 1}).bytes(), 64 * 128 + 2 * 64 * 8);
  EXPECT_EQ(QuantizedWeight(weight, {4, 64, 0}).bytes(), 64 * 64 + 128 * 8);
}

TEST(QuantizedWeight, WhatDoesNotFitIsNamed) {
  const auto weight = at::zeros({64, 100});
  EXPECT_THROW(QuantizedWeight(weight, {8, 64, 1}), c10::ValueError);
  EXPECT_THROW(QuantizedWeight(weight, {8, 64, 2}), c10::ValueError);
  EXPECT_THROW(QuantizedWeight(weight, {8, 64, -1}), c10::ValueError);
  EXPECT_THROW(QuantizedWeight(weight, {3, 64, 0}), c10::ValueError);
  EXPECT_THROW(QuantizedWeight(weight.to(at::kLong), {8, 64, 0}),
               c10::NotImplementedError);
}

}  // namespace
}  // namespace nfold
