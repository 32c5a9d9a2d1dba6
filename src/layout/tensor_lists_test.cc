#include "nfold/tensor_lists.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/optim/sgd.h>

#include "nfold/errors.h"

namespace nfold {
namespace {

TEST(AlignDenseTensors, AppendsZerosAsOneTensor) {
  const std::vector<at::Tensor> list{at::ones({3}, at::kBFloat16),
                                     at::ones({4}, at::kBFloat16)};
  const std::pair<int, int> paddings[] = {{1, 0}, {2, 1}, {4, 1},
                                          {7, 0}, {8, 1}, {16, 9}};
  for (const auto& [alignment, padding] : paddings) {
    SCOPED_TRACE(alignment);
    const auto aligned = align_dense_tensors(list, alignment);
    ASSERT_EQ(aligned.size(), padding == 0 ? 2 : 3);
    EXPECT_TRUE(aligned[1].is_same(list[1]));
    if (padding == 0) continue;
    EXPECT_TRUE(at::equal(aligned[2], at::zeros({padding}, at::kBFloat16)));
    EXPECT_EQ(aligned[2].device(), list[0].device());
  }
  EXPECT_EQ(list.size(), 2);
  EXPECT_TRUE(align_dense_tensors({}, 8).empty());
  EXPECT_THROW(align_dense_tensors(list, 0), c10::ValueError);
}

TEST(SplitByDtype, HasOneOrderAndNoEmptyLists) {
  const auto f64 = at::zeros({1}, at::kDouble);
  const auto f32 = at::zeros({1});
  const auto bf16 = at::zeros({1}, at::kBFloat16);
  const auto f16 = at::zeros({1}, at::kHalf);
  const auto more = at::zeros({2});
  const auto sparse = at::eye(2).to_sparse();
  const auto lists = split_by_dtype({bf16, f64, f32, f16, more, sparse});
  ASSERT_EQ(lists.size(), 4);
  EXPECT_TRUE(lists[0][0].is_same(f16));
  ASSERT_EQ(lists[1].size(), 3);
  EXPECT_TRUE(lists[1][0].is_same(f32));
  EXPECT_TRUE(lists[1][1].is_same(more));
  EXPECT_TRUE(lists[1][2].is_same(sparse));
  EXPECT_TRUE(lists[2][0].is_same(f64));
  EXPECT_TRUE(lists[3][0].is_same(bf16));

  EXPECT_EQ(split_by_dtype({bf16, f32}).size(), 2);
  EXPECT_TRUE(split_by_dtype({}).empty());
  EXPECT_THROW(split_by_dtype({at::zeros({1}, at::kInt)}), c10::ValueError);
}

TEST(FilterEmptyParameters, GroupsLeftEmptyVanishAndOptionsStay) {
  using torch::optim::OptimizerParamGroup;
  using torch::optim::SGDOptions;
  const auto empty = at::zeros({0});
  const auto full = at::zeros({2});
  const std::vector<OptimizerParamGroup> groups{
      {{empty, full}, std::make_unique<SGDOptions>(0.1)},
      {{empty}, std::make_unique<SGDOptions>(0.2)}};
  const auto kept = filter_empty_parameters(groups);
  ASSERT_EQ(kept.size(), 1);
  ASSERT_EQ(kept[0].params().size(), 1);
  EXPECT_TRUE(kept[0].params()[0].is_same(full));
  EXPECT_EQ(kept[0].options().get_lr(), 0.1);
  EXPECT_EQ(groups[0].params().size(), 2);

  EXPECT_EQ(filter_empty_parameters({empty, full, empty}).size(), 1);
  EXPECT_TRUE(filter_empty_parameters(std::vector<at::Tensor>{}).empty());
  EXPECT_TRUE(
      filter_empty_parameters(std::vector<OptimizerParamGroup>{}).empty());
}

}  // namespace
}  // namespace nfold
