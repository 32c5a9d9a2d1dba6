#include "nfold/transposed_linear.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "nfold/errors.h"

namespace nfold {
namespace {

TEST(TransposeInStorage, ReordersElementsAndKeepsTheirMemory) {
  const auto matrix = at::arange(6, at::kFloat).view({2, 3});
  const auto expected = matrix.t().clone(at::MemoryFormat::Contiguous);
  const auto turned = transpose_in_storage(matrix);
  EXPECT_TRUE(at::equal(turned, expected));
  EXPECT_TRUE(turned.is_contiguous());
  EXPECT_EQ(turned.data_ptr(), matrix.data_ptr());
  EXPECT_THROW(transpose_in_storage(turned.t()), c10::ValueError);
  EXPECT_THROW(transpose_in_storage(at::zeros({3})), c10::ValueError);
}

TEST(TransposedLinear, MultipliesByTheWeightAsItWasStored) {
  const auto weight = at::arange(6, at::kFloat).view({2, 3}).requires_grad_();
  const auto bias = at::tensor({1.0F, 2.0F, 3.0F}).requires_grad_();
  const auto x = at::tensor({1.0F, 10.0F}).view({1, 2});
  TransposedLinear linear(weight, bias);
  EXPECT_TRUE(at::equal(linear->forward(x), at::matmul(x, weight) + bias));
  EXPECT_EQ(linear->parameters().size(), 2);
  EXPECT_TRUE(linear->bias.is_same(bias));
  EXPECT_TRUE(linear->weight.is_contiguous());

  linear->forward(x).sum().backward();
  EXPECT_TRUE(at::equal(linear->weight.grad(),
                        at::tensor({1.0F, 10.0F}).view({1, 2}).expand({3, 2})));
  EXPECT_FALSE(weight.grad().defined());
}

TEST(TransposedLinear, WithoutBias) {
  const auto weight = at::arange(6, at::kFloat).view({2, 3});
  const TransposedLinear linear(weight);
  const auto x = at::ones({4, 5, 2});
  EXPECT_TRUE(at::equal(linear->forward(x), at::matmul(x, weight)));
  EXPECT_EQ(linear->parameters().size(), 1);
  EXPECT_FALSE(linear->parameters()[0].requires_grad());
}

TEST(TransposedLinear, RefusesOtherShapes) {
  EXPECT_THROW(TransposedLinear(at::zeros({3})), c10::ValueError);
  EXPECT_THROW(TransposedLinear(at::zeros({2, 3}), at::zeros({2})),
               c10::ValueError);
}

}  // namespace
}  // namespace nfold
