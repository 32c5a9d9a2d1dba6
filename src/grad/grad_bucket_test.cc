#include "grad/grad_bucket.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

namespace nfold {
namespace {

using Buckets = std::vector<std::vector<std::size_t>>;

TEST(PlanBucketsTest, TakesUnitsFromTheLastToTheFirst) {
  const std::vector<BucketKind> floats(4, {at::kFloat});
  EXPECT_EQ(plan_buckets({3, 3, 3, 3}, floats, 6), (Buckets{{3, 2}, {1, 0}}));
  EXPECT_EQ(plan_buckets({3, 3, 3, 3}, floats, 7), (Buckets{{3, 2}, {1, 0}}));
  EXPECT_EQ(plan_buckets({1, 9, 1, 1}, floats, 4), (Buckets{{3, 2}, {1}, {0}}));
  EXPECT_EQ(plan_buckets({3, 3, 3, 3}, floats, 1),
            (Buckets{{3}, {2}, {1}, {0}}));
  EXPECT_EQ(plan_buckets({}, {}, 4), Buckets{});
}

TEST(PlanBucketsTest, DtypesDoNotMix) {
  EXPECT_EQ(plan_buckets({1, 1, 1},
                         {{at::kFloat}, {at::kDouble}, {at::kDouble}}, 100),
            (Buckets{{2, 1}, {0}}));
}

// All sizes from 0 to 3 of five units, all pairs of dtypes, all bounds.
TEST(PlanBucketsTest, HoldsItsRulesForAllSmallInputs) {
  constexpr std::size_t kUnits = 5;
  for (int code = 0; code < 1024; ++code) {
    std::vector<std::int64_t> numels;
    for (std::size_t i = 0; i < kUnits; ++i) {
      numels.push_back((code >> (2 * i)) & 3);
    }
    for (int dtype_code = 0; dtype_code < 32; ++dtype_code) {
      std::vector<BucketKind> dtypes;
      for (std::size_t i = 0; i < kUnits; ++i) {
        dtypes.push_back({(dtype_code >> i) & 1 ? at::kHalf : at::kFloat});
      }
      for (std::int64_t bound = 1; bound <= 7; ++bound) {
        const auto buckets = plan_buckets(numels, dtypes, bound);
        std::size_t next = kUnits;
        std::int64_t previous = 0;  // elements of the bucket before
        for (std::size_t b = 0; b < buckets.size(); ++b) {
          std::int64_t numel = 0;
          ASSERT_FALSE(buckets[b].empty());
          for (const auto unit : buckets[b]) {
            ASSERT_EQ(unit, --next);
            ASSERT_EQ(dtypes[unit], dtypes[buckets[b][0]]);
            numel += numels[unit];
          }
          ASSERT_TRUE(numel <= bound || buckets[b].size() == 1);
          // The unit that opened this bucket did not fit the one before.
          if (b > 0) {
            const auto opener = buckets[b][0];
            ASSERT_TRUE(dtypes[opener] != dtypes[opener + 1] ||
                        previous + numels[opener] > bound);
          }
          previous = numel;
        }
        ASSERT_EQ(next, 0);
      }
    }
  }
}

ParamState make_param(const std::string& name, std::int64_t numel) {
  return {name, {name}, {torch::zeros({numel}).set_requires_grad(true)}};
}

ShardedUnitOptions options_of(at::ScalarType dtype = at::kFloat) {
  ShardedUnitOptions options;
  options.name = "unit";
  options.dtype = dtype;
  options.num_shards = 2;
  return options;
}

TEST(UnitGradBufferTest, GradientsLieWhereTheirParametersDo) {
  ShardedUnit unit({make_param("a", 5), make_param("b", 0), make_param("c", 3)},
                   options_of());
  UnitGradBuffer buffer(unit, at::kFloat);
  EXPECT_TRUE(buffer.is_empty());
  EXPECT_EQ(buffer.bytes(), 0);
  buffer.add(2, 0, torch::full({3}, 4.0), 0.5);
  EXPECT_FALSE(buffer.is_complete());
  EXPECT_TRUE(buffer.has_param(2));
  EXPECT_FALSE(buffer.has_param(0));
  EXPECT_EQ(buffer.bytes(), unit.layout().numel() * 4);
  buffer.add(1, 0, torch::zeros({0}), 0.5);
  buffer.add(0, 0, torch::full({5}, 2.0), 0.5);
  EXPECT_TRUE(buffer.is_complete());

  const auto flat = buffer.take();
  auto expected = torch::zeros({unit.layout().numel()});
  expected.narrow(0, unit.layout().param_offsets[0], 5).fill_(1);
  expected.narrow(0, unit.layout().param_offsets[2], 3).fill_(2);
  EXPECT_TRUE(torch::equal(flat, expected));
  EXPECT_TRUE(buffer.is_empty());
  EXPECT_EQ(buffer.bytes(), 0);
}

TEST(UnitGradBufferTest, WhatDidNotArriveIsZero) {
  ShardedUnit unit({make_param("a", 5), make_param("b", 3)}, options_of());
  UnitGradBuffer buffer(unit, at::kFloat);
  EXPECT_TRUE(
      torch::equal(buffer.take(), torch::zeros({unit.layout().numel()})));
  // Memory that was used before must not shine through.
  for (int round = 0; round < 4; ++round) {
    buffer.add(1, 0, torch::full({3}, 7.0), 1);
    const auto flat = buffer.take();
    EXPECT_EQ(flat.sum().item<float>(), 21);
    flat.fill_(NAN);  // the allocator may hand it out again
  }
}

TEST(UnitGradBufferTest, TiedTensorsAndRepeatedGradientsAdd) {
  auto tied = make_param("a", 4);
  tied.tensors.push_back(tied.tensors[0].detach().set_requires_grad(true));
  ShardedUnit unit({tied}, options_of());
  UnitGradBuffer buffer(unit, at::kFloat);
  buffer.add(0, 1, torch::full({4}, 1.0), 2);
  EXPECT_FALSE(buffer.is_complete());
  buffer.add(0, 0, torch::full({4}, 10.0), 2);
  EXPECT_TRUE(buffer.is_complete());
  buffer.add(0, 0, torch::full({4}, 100.0), 2);
  EXPECT_TRUE(
      torch::equal(buffer.take().narrow(0, 0, 4), torch::full({4}, 222.0)));
}

TEST(UnitGradBufferTest, ALoneGradientOfTheWholeUnitIsTakenOver) {
  ShardedUnit unit({make_param("a", 64)}, options_of());
  ASSERT_EQ(unit.layout().numel(), 64);
  UnitGradBuffer buffer(unit, at::kFloat);
  auto grad = torch::ones({8, 8});
  const auto* memory = grad.data_ptr();
  buffer.add(0, 0, std::move(grad), 1);
  EXPECT_EQ(buffer.take().data_ptr(), memory);
  // So is one whose other holder is autograd, which is done with it.
  auto stolen = torch::ones({64});
  const auto passed_on = stolen.detach();
  const auto* stolen_memory = stolen.data_ptr();
  buffer.add(0, 0, std::move(stolen), 1, 1);
  EXPECT_EQ(buffer.take().data_ptr(), stolen_memory);
  // Somebody else holds this one, and that one has to be scaled.
  const auto held = torch::ones({64});
  buffer.add(0, 0, held, 1);
  EXPECT_NE(buffer.take().data_ptr(), held.data_ptr());
  auto scaled = torch::ones({64});
  buffer.add(0, 0, std::move(scaled), 0.5);
  EXPECT_EQ(buffer.take().sum().item<float>(), 32);
}

TEST(UnitGradBufferTest, GradientsOfAnyStrideAndDtypeAreRounded) {
  ShardedUnit unit({make_param("a", 6)}, options_of());
  UnitGradBuffer buffer(unit, at::kBFloat16);
  const auto grad = torch::arange(6.0).view({2, 3}).t();  // 0 3 1 4 2 5
  buffer.add(0, 0, grad, 1);
  const auto flat = buffer.take();
  EXPECT_EQ(flat.scalar_type(), at::kBFloat16);
  EXPECT_TRUE(torch::equal(flat.narrow(0, 0, 6).to(at::kFloat),
                           torch::tensor({0.f, 3.f, 1.f, 4.f, 2.f, 5.f})));
}

TEST(UnitGradBufferTest, ClearForgets) {
  ShardedUnit unit({make_param("a", 6)}, options_of());
  UnitGradBuffer buffer(unit, at::kFloat);
  buffer.add(0, 0, torch::ones({6}), 1);
  buffer.clear();
  EXPECT_TRUE(buffer.is_empty());
  EXPECT_FALSE(buffer.has_param(0));
  EXPECT_EQ(buffer.take().sum().item<float>(), 0);
}

}  // namespace
}  // namespace nfold
