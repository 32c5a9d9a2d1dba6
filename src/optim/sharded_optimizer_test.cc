#include "optim/sharded_optimizer.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>
#include <limits>

namespace nfold {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

using Segments = std::vector<OwnedSegment>;

TEST(PlanSegmentsTest, NeighboursWithOneGroupAreOneSegment) {
  // Offsets 0, 16, 32, shards of 32.
  const auto layout = make_unit_layout({5, 3, 4}, 4, 2);
  EXPECT_EQ(plan_segments(7, layout, {0, 64}, {0, 0, 0}),
            (Segments{{7, 0, 0, 36}}));
  EXPECT_EQ(plan_segments(7, layout, {0, 64}, {0, 1, 1}),
            (Segments{{7, 0, 0, 5}, {7, 1, 16, 20}}));
  EXPECT_EQ(plan_segments(7, layout, {0, 64}, {0, 1, 0}),
            (Segments{{7, 0, 0, 5}, {7, 1, 16, 3}, {7, 0, 32, 4}}));
}

TEST(PlanSegmentsTest, OnlyTheOwnedRangeCounts) {
  const auto layout = make_unit_layout({5, 3, 4}, 4, 2);
  EXPECT_EQ(plan_segments(0, layout, {32, 32}, {0, 1, 2}),
            (Segments{{0, 2, 0, 4}}));
  // A parameter that spans two shards.
  const auto wide = make_unit_layout({40}, 4, 2);
  EXPECT_EQ(plan_segments(0, wide, shard_range(wide, 1), {0}),
            (Segments{{0, 0, 0, 40 - wide.shard_numel}}));
  // A rank that owns nothing but residue.
  EXPECT_EQ(plan_segments(0, make_unit_layout({1}, 4, 4), {48, 16}, {0}),
            Segments{});
}

TEST(PlanSegmentsTest, EmptyParametersHaveNone) {
  EXPECT_EQ(plan_segments(0, make_unit_layout({0, 4}, 4, 1), {0, 16}, {1, 0}),
            (Segments{{0, 0, 0, 4}}));
}

// One unit of one 20-element parameter on one rank.
struct OneUnit {
  explicit OneUnit(at::ScalarType dtype = at::kFloat) {
    ShardedUnitOptions options;
    options.name = "unit";
    options.dtype = dtype;
    auto weight = torch::arange(20.0).set_requires_grad(true);
    unit = std::make_unique<ShardedUnit>(
        std::vector<ParamState>{{"p", {"p"}, {weight}}}, options);
  }

  ShardedOptimizerInput input(double lr = 0.5) {
    ShardedOptimizerInput made;
    made.units = {unit.get()};
    made.segments = plan_segments(0, unit->layout(), unit->owned_range(), {0});
    made.groups = {{lr, 0, std::nullopt}};
    return made;
  }

  void set_grad(double value) {
    unit->clear_grad();
    unit->accumulate_grad(torch::full({unit->layout().numel()}, value,
                                      at::TensorOptions(unit->options().dtype)),
                          1);
  }

  std::unique_ptr<ShardedUnit> unit;
};

OptimizerConfig config_of(OptimizerType type) {
  return {type, default_optimizer_params(type)};
}

TEST(ShardedOptimizerTest, UnitsAreReportedOnceUpdated) {
  OneUnit one(at::kBFloat16);
  auto config = config_of(OptimizerType::kSgd);
  const auto optimizer = make_sharded_optimizer(config, one.input());
  one.set_grad(8);
  std::vector<std::size_t> updated;
  optimizer->step(0.25, [&](std::size_t unit) {
    updated.push_back(unit);
    // fp32 weights and their bf16 copy are both there.
    EXPECT_EQ(one.unit->master()[3].item<float>(), 3 - 0.5 * 8 * 0.25);
    EXPECT_TRUE(
        torch::equal(one.unit->owned(), one.unit->master().to(at::kBFloat16)));
  });
  EXPECT_THAT(updated, ElementsAre(0));
}

TEST(ShardedOptimizerTest, StateIsWrittenInRanges) {
  for (const bool is_torch : {false, true}) {
    OneUnit one;
    auto config = config_of(OptimizerType::kAdamW);
    config.params.torch_adam = is_torch;
    const auto optimizer = make_sharded_optimizer(config, one.input());
    one.set_grad(1);
    optimizer->step(1, [](std::size_t) {});
    EXPECT_THAT(optimizer->state_names(), ElementsAre("exp_avg", "exp_avg_sq"));
    EXPECT_EQ(optimizer->num_states(), 2);
    optimizer->set_state(0, "exp_avg", 5, torch::full({3}, 42.0));
    const auto state = optimizer->state(0, "exp_avg");
    EXPECT_EQ(state.numel(), one.unit->owned_range().numel);
    EXPECT_NEAR(state[4].item<float>(), 0.1, 1e-7);
    EXPECT_EQ(state[5].item<float>(), 42);
    EXPECT_EQ(state[7].item<float>(), 42);
    EXPECT_NEAR(state[8].item<float>(), 0.1, 1e-7);
    EXPECT_GE(optimizer->state_bytes(), 2 * 20 * 4);
  }
}

TEST(ShardedOptimizerTest, AnUnknownStateListsTheKnownOnes) {
  OneUnit one;
  const auto fused =
      make_sharded_optimizer(config_of(OptimizerType::kAdagrad), one.input());
  try {
    fused->state(0, "exp_avg");
    FAIL() << "no error";
  } catch (const c10::ValueError& error) {
    EXPECT_THAT(error.what_without_backtrace(),
                AllOf(HasSubstr("\"exp_avg\""), HasSubstr("has sum")));
  }
  // torch makes its state in the first step.
  const auto torchs =
      make_sharded_optimizer(config_of(OptimizerType::kRmsProp), one.input());
  try {
    torchs->state(0, "square_avg");
    FAIL() << "no error";
  } catch (const c10::ValueError& error) {
    EXPECT_THAT(error.what_without_backtrace(),
                HasSubstr("none before its first step"));
  }
  one.set_grad(1);
  torchs->step(1, [](std::size_t) {});
  EXPECT_GT(torchs->state(0, "square_avg")[3].item<float>(), 0);
}

std::unique_ptr<ShardedOptimizer> make_own(OneUnit& one, OptimGroup group) {
  auto input = one.input();
  input.groups = {group};
  return make_torch_optimizer(
      [](std::vector<torch::optim::OptimizerParamGroup> groups) {
        return std::make_unique<torch::optim::SGD>(
            std::move(groups),
            torch::optim::SGDOptions(0.125).weight_decay(0.75));
      },
      std::move(input));
}

TEST(TorchOptimizerTest, WhatNobodySetIsAsTheFactoryMadeIt) {
  constexpr auto kUnset = std::numeric_limits<double>::quiet_NaN();
  OneUnit one;
  const auto unset = make_own(one, {kUnset, kUnset, std::nullopt});
  EXPECT_EQ(unset->groups()[0].lr, 0.125);
  EXPECT_EQ(unset->groups()[0].weight_decay, 0.75);
  const auto set = make_own(one, {0.5, kUnset, std::nullopt});
  EXPECT_EQ(set->groups()[0].lr, 0.5);
  EXPECT_EQ(set->groups()[0].weight_decay, 0.75);
}

TEST(TorchOptimizerTest, GroupsAreAppliedInTheNextStep) {
  OneUnit one;
  const auto optimizer = make_own(one, {0.5, 0, std::nullopt});
  one.set_grad(1);
  optimizer->step(1, [](std::size_t) {});
  EXPECT_EQ(one.unit->master()[3].item<float>(), 2.5);
  optimizer->groups()[0].lr = 2;
  one.set_grad(1);
  optimizer->step(0.5, [](std::size_t) {});
  EXPECT_EQ(one.unit->master()[3].item<float>(), 1.5);
}

TEST(TorchOptimizerTest, MastersOfLowPrecisionUnitsAreUpdated) {
  OneUnit one(at::kBFloat16);
  const auto optimizer = make_own(one, {1.0 / 1024, 0, std::nullopt});
  one.set_grad(1);
  for (int step = 0; step < 4; ++step) {
    optimizer->step(1, [](std::size_t) {});
  }
  // Too small a change for bf16 in one step, and even in four.
  EXPECT_EQ(one.unit->master()[3].item<float>(), 3 - 4.0f / 1024);
  EXPECT_EQ(one.unit->owned()[3].item<float>(), 3);
}

TEST(TorchOptimizerTest, FactoriesThatDoNotFitAreErrors) {
  OneUnit one;
  EXPECT_THROW(make_torch_optimizer(
                   [](std::vector<torch::optim::OptimizerParamGroup>) {
                     return std::unique_ptr<torch::optim::Optimizer>();
                   },
                   one.input()),
               c10::ValueError);
  EXPECT_THROW(
      make_torch_optimizer(
          [](std::vector<torch::optim::OptimizerParamGroup> groups) {
            groups.emplace_back(std::vector<at::Tensor>{torch::ones({1})});
            return std::make_unique<torch::optim::SGD>(
                std::move(groups), torch::optim::SGDOptions(1));
          },
          one.input()),
      c10::ValueError);
  EXPECT_THROW(
      make_torch_optimizer(
          [](std::vector<torch::optim::OptimizerParamGroup> groups) {
            return std::make_unique<torch::optim::LBFGS>(std::move(groups));
          },
          one.input()),
      c10::NotImplementedError);
}

}  // namespace
}  // namespace nfold
