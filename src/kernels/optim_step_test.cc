#include "kernels/optim_step.h"

#include <c10/util/Exception.h>
#include <gtest/gtest.h>
#include <torch/optim/adagrad.h>
#include <torch/optim/adam.h>
#include <torch/optim/adamw.h>
#include <torch/optim/sgd.h>

#include <functional>
#include <memory>
#include <vector>

#include "kernels/kernel_testing.h"

namespace nfold::kernels {
namespace {

constexpr std::int64_t kNumel = 10007;
constexpr int kNumSteps = 50;

using Step = std::function<void(std::int64_t step, const OptimStep& tensors)>;
using MakeOptimizer =
    std::function<std::unique_ptr<torch::optim::Optimizer>(at::Tensor)>;

// 50 steps with the same gradients here and in torch.
void expect_as_torch(at::ScalarType dtype, const MakeOptimizer& make,
                     const Step& step) {
  at::manual_seed(7);
  const at::Tensor master = at::randn({kNumel}, dtype);
  at::Tensor expected = master.clone().requires_grad_();
  const auto optimizer = make(expected);
  for (int i = 1; i <= kNumSteps; ++i) {
    const at::Tensor grad = at::randn({kNumel}, dtype);
    expected.mutable_grad() = grad.clone();
    optimizer->step();
    step(i, {.master = master, .grad = grad});
  }
  const at::Tensor difference = (master - expected.detach()).abs();
  // Weights are about 1 on their way, so that is what rounding is relative to
  // where one ends near zero.
  const at::Tensor scale = expected.detach().abs().clamp_min(1);
  const double tolerance = dtype == at::kDouble ? 1e-13 : 1e-6;
  EXPECT_LT((difference / scale).max().item<double>(), tolerance) << dtype;
}

at::Tensor zeros_of(at::ScalarType dtype) { return at::zeros({kNumel}, dtype); }

TEST(AdamStep, DecoupledFollowsTorchAdamw) {
  for (const at::ScalarType dtype : {at::kFloat, at::kDouble}) {
    const at::Tensor average = zeros_of(dtype);
    const at::Tensor square = zeros_of(dtype);
    expect_as_torch(
        dtype,
        [](at::Tensor param) {
          return std::make_unique<torch::optim::AdamW>(
              std::vector<at::Tensor>{param},
              torch::optim::AdamWOptions(1e-2).weight_decay(0.1).betas(
                  {0.9, 0.95}));
        },
        [&](std::int64_t step, const OptimStep& tensors) {
          adam_step({.lr = 1e-2, .beta2 = 0.95, .weight_decay = 0.1}, step,
                    tensors, average, square);
        });
  }
}

TEST(AdamStep, CoupledFollowsTorchAdam) {
  for (const at::ScalarType dtype : {at::kFloat, at::kDouble}) {
    const at::Tensor average = zeros_of(dtype);
    const at::Tensor square = zeros_of(dtype);
    expect_as_torch(
        dtype,
        [](at::Tensor param) {
          return std::make_unique<torch::optim::Adam>(
              std::vector<at::Tensor>{param},
              torch::optim::AdamOptions(1e-2).weight_decay(0.1));
        },
        [&](std::int64_t step, const OptimStep& tensors) {
          adam_step({.lr = 1e-2, .weight_decay = 0.1, .is_decoupled = false},
                    step, tensors, average, square);
        });
  }
}

TEST(AdamStep, WithoutBiasCorrectionTakesTheRawAverages) {
  const at::Tensor master = at::ones({3});
  const at::Tensor average = at::zeros({3});
  const at::Tensor square = at::zeros({3});
  adam_step({.lr = 0.5, .eps = 0, .has_bias_correction = false}, 1,
            {.master = master, .grad = at::full({3}, 2.0F)}, average, square);
  // 0.5 * (0.1 * 2) / sqrt(0.001 * 4)
  EXPECT_NEAR(master[0].item<double>(), 1 - 0.1 / std::sqrt(0.004), 1e-6);
}

TEST(SgdStep, FollowsTorchSgd) {
  const SgdHyper variants[] = {
      {.lr = 0.01},
      {.lr = 0.01, .weight_decay = 0.1},
      {.lr = 0.01, .momentum = 0.9},
      {.lr = 0.01, .momentum = 0.9, .dampening = 0.3, .weight_decay = 0.1},
      {.lr = 0.01, .momentum = 0.9, .weight_decay = 0.1, .is_nesterov = true},
  };
  for (const SgdHyper& hyper : variants) {
    const at::Tensor momentum = zeros_of(at::kFloat);
    expect_as_torch(
        at::kFloat,
        [&hyper](at::Tensor param) {
          return std::make_unique<torch::optim::SGD>(
              std::vector<at::Tensor>{param},
              torch::optim::SGDOptions(hyper.lr)
                  .momentum(hyper.momentum)
                  .dampening(hyper.dampening)
                  .weight_decay(hyper.weight_decay)
                  .nesterov(hyper.is_nesterov));
        },
        [&](std::int64_t step, const OptimStep& tensors) {
          sgd_step(hyper, step, tensors, momentum);
        });
  }
}

TEST(AdagradStep, FollowsTorchAdagrad) {
  const AdagradHyper hyper{.lr = 0.01, .lr_decay = 0.1, .weight_decay = 0.1};
  const at::Tensor sum = at::full({kNumel}, 0.5F);
  expect_as_torch(
      at::kFloat,
      [&hyper](at::Tensor param) {
        return std::make_unique<torch::optim::Adagrad>(
            std::vector<at::Tensor>{param},
            torch::optim::AdagradOptions(hyper.lr)
                .lr_decay(hyper.lr_decay)
                .weight_decay(hyper.weight_decay)
                .initial_accumulator_value(0.5));
      },
      [&](std::int64_t step, const OptimStep& tensors) {
        adagrad_step(hyper, step, tensors, sum);
      });
}

TEST(LionStep, MovesByTheSignOfTheInterpolatedAverage) {
  at::manual_seed(8);
  const LionHyper hyper{
      .lr = 0.01, .beta1 = 0.9, .beta2 = 0.99, .weight_decay = 0.1};
  const at::Tensor master = at::randn({kNumel}, at::kDouble);
  const at::Tensor average = zeros_of(at::kDouble);
  at::Tensor expected = master.clone();
  at::Tensor expected_average = average.clone();
  for (int i = 0; i < kNumSteps; ++i) {
    const at::Tensor grad = at::randn({kNumel}, at::kDouble);
    grad[5] = 0;
    lion_step(hyper, {.master = master, .grad = grad}, average);
    const at::Tensor direction =
        (hyper.beta1 * expected_average + (1 - hyper.beta1) * grad).sign();
    expected =
        expected * (1 - hyper.lr * hyper.weight_decay) - hyper.lr * direction;
    expected_average =
        hyper.beta2 * expected_average + (1 - hyper.beta2) * grad;
  }
  EXPECT_TRUE(at::allclose(master, expected, 1e-12, 1e-12));
  EXPECT_TRUE(at::allclose(average, expected_average, 1e-12, 1e-12));
}

struct AdamState {
  at::Tensor master;
  at::Tensor average;
  at::Tensor square;
};

AdamState random_state(at::ScalarType dtype) {
  return {at::randn({kNumel}).to(dtype), at::randn({kNumel}).to(dtype),
          at::rand({kNumel}).to(dtype)};
}

TEST(AdamStep, WritesTheLowPrecisionCopyInTheSamePass) {
  at::manual_seed(9);
  for (const at::ScalarType dtype : {at::kHalf, at::kBFloat16}) {
    const AdamState state = random_state(at::kFloat);
    const at::Tensor grad = at::randn({kNumel}).to(dtype);
    const at::Tensor low = at::zeros({kNumel}, dtype);
    adam_step({}, 3,
              {.master = state.master, .grad = grad, .low_precision = low},
              state.average, state.square);
    EXPECT_TRUE(is_bitwise_equal(low, state.master.to(dtype))) << dtype;
  }
}

TEST(AdamStep, ScalesTheGradientFirst) {
  at::manual_seed(10);
  for (const at::ScalarType dtype : {at::kFloat, at::kHalf, at::kBFloat16}) {
    const AdamState state = random_state(at::kFloat);
    const AdamState other{state.master.clone(), state.average.clone(),
                          state.square.clone()};
    const at::Tensor grad = at::randn({kNumel}).to(dtype);
    const at::Tensor kept = grad.clone();
    adam_step({}, 1, {.master = state.master, .grad = grad, .grad_scale = 0.3},
              state.average, state.square);
    adam_step({}, 1,
              {.master = other.master, .grad = grad.to(at::kFloat) * 0.3F},
              other.average, other.square);
    EXPECT_TRUE(is_bitwise_equal(state.master, other.master)) << dtype;
    EXPECT_TRUE(is_bitwise_equal(state.square, other.square)) << dtype;
    EXPECT_TRUE(is_bitwise_equal(grad, kept)) << dtype;
  }
}

TEST(AdamStep, SixteenBitMasterWeightsAndStateAreRoundedAfterTheUpdate) {
  at::manual_seed(11);
  for (const at::ScalarType dtype : {at::kHalf, at::kBFloat16}) {
    const AdamState state = random_state(dtype);
    const at::Tensor grad = at::randn({kNumel}).to(dtype);
    const AdamState wide{state.master.to(at::kFloat),
                         state.average.to(at::kFloat),
                         state.square.to(at::kFloat)};
    adam_step({}, 1, {.master = state.master, .grad = grad}, state.average,
              state.square);
    adam_step({}, 1, {.master = wide.master, .grad = grad.to(at::kFloat)},
              wide.average, wide.square);
    EXPECT_TRUE(is_bitwise_equal(state.master, wide.master.to(dtype)));
    EXPECT_TRUE(is_bitwise_equal(state.average, wide.average.to(dtype)));
    EXPECT_TRUE(is_bitwise_equal(state.square, wide.square.to(dtype)));
  }
}

TEST(AdamStep, PiecesOfAShardGiveTheBitsOfTheWhole) {
  at::manual_seed(12);
  std::mt19937 random(12);
  const AdamState whole = random_state(at::kFloat);
  const AdamState parts{whole.master.clone(), whole.average.clone(),
                        whole.square.clone()};
  const at::Tensor grad = at::randn({kNumel}).to(at::kBFloat16);
  const AdamHyper hyper{.lr = 0.1, .weight_decay = 0.1};
  adam_step(hyper, 2, {.master = whole.master, .grad = grad}, whole.average,
            whole.square);
  for (std::int64_t begin = 0; begin < kNumel;) {
    const std::int64_t numel =
        std::min<std::int64_t>(kNumel - begin, 1 + random() % 900);
    const auto piece = [&](const at::Tensor& tensor) {
      return tensor.narrow(0, begin, numel);
    };
    adam_step(hyper, 2, {.master = piece(parts.master), .grad = piece(grad)},
              piece(parts.average), piece(parts.square));
    begin += numel;
  }
  EXPECT_TRUE(is_bitwise_equal(whole.master, parts.master));
  EXPECT_TRUE(is_bitwise_equal(whole.average, parts.average));
  EXPECT_TRUE(is_bitwise_equal(whole.square, parts.square));
}

TEST(OptimSteps, EmptyShardsAreFine) {
  const at::Tensor empty = at::zeros({0});
  const OptimStep tensors{.master = empty, .grad = empty};
  adam_step({}, 1, tensors, empty, empty);
  sgd_step({}, 1, tensors, {});
  adagrad_step({}, 1, tensors, empty);
  lion_step({}, tensors, empty);
}

TEST(OptimSteps, WhatDoesNotFitIsNamedAndNothingChanges) {
  const at::Tensor master = at::ones({4});
  const at::Tensor state = at::zeros({4});
  const OptimStep tensors{.master = master, .grad = at::ones({4})};
  EXPECT_THROW(adam_step({}, 0, tensors, state, state), c10::ValueError);
  EXPECT_THROW(adam_step({.beta2 = 1}, 1, tensors, state, state),
               c10::ValueError);
  EXPECT_THROW(adam_step({.lr = std::nan("")}, 1, tensors, state, state),
               c10::ValueError);
  EXPECT_THROW(adam_step({}, 1, tensors, state, at::zeros({5})),
               c10::ValueError);
  EXPECT_THROW(sgd_step({.momentum = 0.9}, 1, tensors, {}), c10::ValueError);
  EXPECT_THROW(sgd_step({.is_nesterov = true}, 1, tensors, state),
               c10::ValueError);
  EXPECT_THROW(lion_step({}, {.master = master, .grad = at::ones({3})}, state),
               c10::ValueError);
  EXPECT_TRUE(at::equal(master, at::ones({4})));
  try {
    adam_step({}, 1, tensors, at::zeros({5}), state);
    FAIL() << "a state of another size was accepted";
  } catch (const c10::ValueError& error) {
    EXPECT_NE(std::string(error.what())
                  .find("adam_step: exp_avg: expected 4 elements but found 5"),
              std::string::npos);
  }
}

}  // namespace
}  // namespace nfold::kernels
