#include "nfold/clip.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

namespace nfold {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

at::Tensor param_with_grad(const std::vector<float>& grad) {
  const auto values = at::tensor(grad);
  auto param = at::zeros_like(values).requires_grad_();
  param.mutable_grad() = values;
  return param;
}

void expect_values(const at::Tensor& tensor, const std::vector<float>& values) {
  EXPECT_TRUE(at::allclose(tensor, at::tensor(values), 1e-5, 0)) << tensor;
}

TEST(ClipFactor, DividesDownToTheGreatestNorm) {
  EXPECT_DOUBLE_EQ(clip_factor(10, 2), (10 + 1e-6) / 2);
  EXPECT_EQ(clip_factor(1, 2), 1);
  EXPECT_EQ(clip_factor(0, 2), 1);
}

TEST(ClipFactor, ZeroTurnsClippingOff) { EXPECT_EQ(clip_factor(10, 0), 1); }

TEST(ClipFactor, AnInvalidNormIsAnError) {
  EXPECT_THROW(clip_factor(-1, 2), c10::ValueError);
  EXPECT_THROW(clip_factor(kInfinity, 2), c10::ValueError);
  EXPECT_THROW(clip_factor(std::nan(""), 0), c10::ValueError);
  EXPECT_THROW(clip_factor(1, -2), c10::ValueError);
}

TEST(ClipGradNorm, ScalesGradientsInPlaceAndReturnsTheirNorm) {
  const auto a = param_with_grad({3, 4});
  const auto b = param_with_grad({12});
  EXPECT_DOUBLE_EQ(clip_grad_norm({a, b, at::zeros({7})}, 6.5), 13);
  expect_values(a.grad(), {1.5, 2});
  expect_values(b.grad(), {6});
}

TEST(ClipGradNorm, MaximumNorm) {
  const auto a = param_with_grad({3, -4});
  const auto b = param_with_grad({12});
  EXPECT_EQ(clip_grad_norm({a, b}, 6, {.p = kInfinity}), 12);
  expect_values(a.grad(), {1.5, -2});
  expect_values(b.grad(), {6});
}

TEST(ClipGradNorm, OtherPowersAreTakenAsAsked) {
  const auto a = param_with_grad({1, -2});
  const auto b = param_with_grad({3});
  EXPECT_DOUBLE_EQ(clip_grad_norm({a, b}, 3, {.p = 1}), 6);
  expect_values(a.grad(), {0.5, -1});
  const auto c = param_with_grad({1, -2});
  const auto d = param_with_grad({3});
  EXPECT_DOUBLE_EQ(clip_grad_norm({c, d}, 100, {.p = 3}), std::cbrt(36));
  expect_values(d.grad(), {3});
}

TEST(ClipGradNorm, SmallGradientsAreUntouched) {
  const auto a = param_with_grad({0.3F, 0.4F});
  const auto before = a.grad().clone();
  EXPECT_NEAR(clip_grad_norm({a}, 1), 0.5, 1e-7);
  EXPECT_TRUE(at::equal(a.grad(), before));
}

TEST(ClipTensors, ScalesOnlyWhatIsTooLong) {
  const auto tensor = at::tensor({3.0F, 4.0F});
  EXPECT_EQ(clip_tensors_by_global_norm({tensor}), 5);
  expect_values(tensor, {0.6F, 0.8F});
  const auto small = at::tensor({0.3F, 0.4F});
  EXPECT_NEAR(clip_tensors_by_global_norm({small}), 0.5, 1e-7);
  EXPECT_TRUE(at::equal(small, at::tensor({0.3F, 0.4F})));
}

TEST(ClipTensors, TakesAGivenNorm) {
  const auto tensor = at::tensor({3.0F, 4.0F});
  EXPECT_EQ(clip_tensors_by_global_norm({tensor}, {.norm = 10}), 10);
  expect_values(tensor, {0.3F, 0.4F});
}

TEST(ClipTensors, NeverFlipsSignsForNonFiniteValues) {
  // A norm of -1 would give a negative coefficient below 1.
  for (const auto bad : {kInfinity, std::nan("")}) {
    const auto fine = at::tensor({3.0F, 4.0F});
    const auto broken = at::tensor({static_cast<float>(bad)});
    EXPECT_EQ(clip_tensors_by_global_norm({fine, broken}), kInfinity);
    EXPECT_TRUE(at::equal(fine, at::tensor({3.0F, 4.0F})));
  }
  const auto tensor = at::tensor({3.0F});
  EXPECT_EQ(clip_tensors_by_global_norm({tensor}, {.norm = -1}), kInfinity);
  EXPECT_EQ(tensor.item<float>(), 3);
}

}  // namespace
}  // namespace nfold
