#include "nfold/backward_hooks.h"

#include <ATen/ATen.h>
#include <ATen/core/Dict.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>
#include <torch/autograd.h>
#include <torch/csrc/autograd/variable.h>

#include <memory>
#include <vector>

namespace nfold {
namespace {

at::Tensor leaf(double value) { return at::full({2}, value).requires_grad_(); }

TEST(MaybeLoss, IsOneElementWithAGradientFunction) {
  const auto param = leaf(1);
  EXPECT_TRUE(maybe_loss_for_backward(param.sum()));
  EXPECT_TRUE(maybe_loss_for_backward(param.sum().view({1, 1})));
  EXPECT_FALSE(maybe_loss_for_backward(param * 2));
  EXPECT_FALSE(maybe_loss_for_backward(at::ones({})));
  EXPECT_FALSE(maybe_loss_for_backward(at::ones({1}).requires_grad_()));
  EXPECT_FALSE(maybe_loss_for_backward(3.0));
  EXPECT_FALSE(maybe_loss_for_backward(at::Tensor()));
}

TEST(OutputBackwardHooks, RunOncePerPassAndTransformEachGradient) {
  const auto a = leaf(1);
  const auto b = leaf(1);
  const auto first = a * 2;
  const auto second = b * 3;
  c10::Dict<std::string, at::Tensor> dictionary;
  dictionary.insert("second", second);
  const c10::IValue outputs = c10::ivalue::Tuple::create(
      {first, c10::IValue(dictionary), 5, at::ones({2})});
  int num_passes = 0;
  register_output_backward_hooks(
      outputs, [&] { ++num_passes; },
      [](const at::Tensor& grad) { return grad * 10; });

  const auto loss = (first + second).sum();
  loss.backward({}, /*retain_graph=*/true);
  EXPECT_EQ(num_passes, 1);
  EXPECT_TRUE(at::equal(a.grad(), at::full({2}, 20.0F)));
  EXPECT_TRUE(at::equal(b.grad(), at::full({2}, 30.0F)));
  loss.backward();
  EXPECT_EQ(num_passes, 2);
}

TEST(OutputBackwardHooks, RunBeforeTheGradientGoesOn) {
  const auto param = leaf(1);
  const auto output = param * 2;
  bool had_gradient = true;
  register_output_backward_hooks(
      output, [&] { had_gradient = param.grad().defined(); });
  output.sum().backward();
  EXPECT_FALSE(had_gradient);
  EXPECT_TRUE(param.grad().defined());
}

TEST(OutputBackwardHooks, RegisteringAgainRemovesTheOldOnes) {
  const auto param = leaf(1);
  const auto before = param * 2;
  const auto after = param * 3;
  int num_passes = 0;
  OutputBackwardHooks hooks({.once = [&] { ++num_passes; }});
  hooks.register_on(before);
  hooks.register_on(after);
  before.sum().backward();
  EXPECT_EQ(num_passes, 0);
  after.sum().backward({}, /*retain_graph=*/true);
  EXPECT_EQ(num_passes, 1);
  hooks.remove();
  after.sum().backward();
  EXPECT_EQ(num_passes, 1);
}

TEST(OutputBackwardHooks, LiveAsLongAsTheirOutputs) {
  const auto held = std::make_shared<int>(0);
  const auto param = leaf(1);
  {
    const auto output = param * 2;
    register_output_backward_hooks(output, [held] { ++*held; });
    EXPECT_EQ(held.use_count(), 2);
    output.sum().backward();
    EXPECT_EQ(*held, 1);
  }
  EXPECT_EQ(held.use_count(), 1);
}

TEST(OutputBackwardHooks, OutputsThatAreGoneCanBeRemoved) {
  const auto param = leaf(1);
  OutputBackwardHooks hooks({.once = [] {}});
  hooks.register_on(param * 2);
  hooks.remove();
  hooks.register_on(param * 3);
}

// What a hook on `output` counts while `run` differentiates it.
std::int64_t counted_in(const at::Tensor& output,
                        const std::vector<at::Tensor>& params,
                        const std::function<void()>& run) {
  std::int64_t count = -1;
  const auto position = output.register_hook([&](const at::Tensor& grad) {
    count = count_used_parameters_in_backward(params);
    return grad;
  });
  run();
  output.remove_hook(position);
  return count;
}

TEST(UsedParameters, AreThoseThatThisPassReaches) {
  const auto used = leaf(1);
  const auto also_used = leaf(2);
  const auto unused = leaf(3);
  const auto frozen = at::ones({2});
  const auto output = used * also_used * frozen;
  const auto detached = leaf(4);
  const auto loss = output + detached.detach();
  const std::vector<at::Tensor> params{used,     also_used, unused,      frozen,
                                       detached, used,      at::Tensor()};
  EXPECT_EQ(counted_in(output, params, [&] { loss.sum().backward({}, true); }),
            2);
  EXPECT_EQ(counted_in(output, {}, [&] { loss.sum().backward({}, true); }), 0);
  // Gradients of some inputs only.
  EXPECT_EQ(
      counted_in(
          output, params,
          [&] { loss.sum().backward({}, true, false, at::TensorList{used}); }),
      1);
}

TEST(UsedParameters, CanOnlyBeCountedWhileBackwardRuns) {
  EXPECT_THROW(count_used_parameters_in_backward({leaf(1)}), c10::ValueError);
}

TEST(UsedParameters, CannotBeCountedInGrad) {
  const auto param = leaf(1);
  const auto output = param * 2;
  EXPECT_THROW(
      counted_in(output, {param},
                 [&] { torch::autograd::grad({output.sum()}, {param}); }),
      c10::NotImplementedError);
}

}  // namespace
}  // namespace nfold
