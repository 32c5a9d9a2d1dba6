#include "nfold/activation_checkpoint.h"

#include <ATen/autocast_mode.h>
#include <c10/core/CPUAllocator.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <atomic>
#include <stdexcept>

#include "nfold/errors.h"

namespace nfold {
namespace {

using testing::HasSubstr;
using Tensors = std::vector<at::Tensor>;

// Counts the bytes that CPU tensors hold.
class CountingAllocator : public c10::Allocator {
 public:
  CountingAllocator() : inner_(c10::GetCPUAllocator()) {
    c10::SetCPUAllocator(this, /*priority=*/200);
  }
  c10::DataPtr allocate(std::size_t num_bytes) override {
    c10::DataPtr block = inner_->allocate(num_bytes);
    auto* counted = new Counted{this, std::move(block),
                                static_cast<std::int64_t>(num_bytes)};
    live_bytes_ += counted->num_bytes;
    return {counted->block.get(), counted, &Counted::release,
            at::Device(at::kCPU)};
  }
  void copy_data(void* to, const void* from, std::size_t count) const override {
    default_copy_data(to, from, count);
  }
  std::int64_t live_bytes() const { return live_bytes_; }

  static CountingAllocator& instance() {
    static auto* allocator = new CountingAllocator();
    return *allocator;
  }

 private:
  struct Counted {
    CountingAllocator* owner;
    c10::DataPtr block;
    std::int64_t num_bytes;
    static void release(void* context) {
      auto* counted = static_cast<Counted*>(context);
      counted->owner->live_bytes_ -= counted->num_bytes;
      delete counted;
    }
  };
  c10::Allocator* inner_;
  std::atomic<std::int64_t> live_bytes_{0};
};

struct MlpImpl : torch::nn::Module {
  explicit MlpImpl(double dropout = 0.0)
      : up(register_module("up", torch::nn::Linear(16, 64))),
        norm(register_module(
            "norm", torch::nn::LayerNorm(torch::nn::LayerNormOptions({64})))),
        down(register_module("down", torch::nn::Linear(64, 16))),
        dropout_(dropout) {}
  at::Tensor forward(const at::Tensor& x) {
    ++num_runs;
    auto hidden = at::gelu(norm->forward(up->forward(x)));
    return x + down->forward(at::dropout(hidden, dropout_, is_training()));
  }
  int num_runs = 0;
  torch::nn::Linear up;
  torch::nn::LayerNorm norm;
  torch::nn::Linear down;

 private:
  double dropout_;
};
TORCH_MODULE(Mlp);

Tensors gradients(const Mlp& mlp, const at::Tensor& x) {
  Tensors result;
  for (const auto& param : mlp->parameters()) {
    result.push_back(param.grad().clone());
  }
  if (x.grad().defined()) result.push_back(x.grad().clone());
  return result;
}

Tensors run(Mlp mlp, const at::Tensor& input, bool is_checkpointed,
            int num_layers = 3) {
  at::manual_seed(7);
  mlp->zero_grad();
  at::Tensor x = input.detach().clone();
  if (input.is_floating_point()) x.requires_grad_(input.requires_grad());
  at::Tensor y = x;
  for (int i = 0; i < num_layers; ++i) {
    y = is_checkpointed
            ? checkpoint([&](const at::Tensor& t) { return mlp->forward(t); },
                         y)
            : mlp->forward(y);
  }
  y.square().mean().backward();
  Tensors result = gradients(mlp, x);
  result.push_back(y.detach());
  // What is drawn next shows whether the current random state was kept.
  result.push_back(at::rand({4}));
  return result;
}

void expect_equal(const Tensors& actual, const Tensors& expected) {
  ASSERT_EQ(actual.size(), expected.size());
  for (std::size_t i = 0; i < actual.size(); ++i) {
    EXPECT_TRUE(at::equal(actual[i], expected[i])) << "tensor " << i;
  }
}

TEST(CheckpointTest, GradientsAreBitEqualToThoseWithout) {
  Mlp mlp;
  const auto x = at::randn({5, 16}).requires_grad_();
  expect_equal(run(mlp, x, true), run(mlp, x, false));
}

TEST(CheckpointTest, DropoutDrawsTheSameMaskAndKeepsTheCurrentState) {
  Mlp mlp(0.4);
  const auto x = at::randn({5, 16}).requires_grad_();
  expect_equal(run(mlp, x, true), run(mlp, x, false));
}

TEST(CheckpointTest, ParametersGetGradientsWhenNoInputRequiresThem) {
  Mlp mlp(0.1);
  const auto x = at::randn({5, 16});
  const Tensors with = run(mlp, x, true);
  EXPECT_EQ(with.size(), 6u + 2u);
  expect_equal(with, run(mlp, x, false));
}

TEST(CheckpointTest, RunsTwiceWithGradientsAndOnceWithout) {
  Mlp mlp;
  auto forward = [&](const at::Tensor& t) { return mlp->forward(t); };
  auto y = checkpoint(forward, at::randn({5, 16}));
  EXPECT_EQ(mlp->num_runs, 1);
  y.sum().backward();
  EXPECT_EQ(mlp->num_runs, 2);
  at::NoGradGuard no_grad;
  EXPECT_FALSE(checkpoint(forward, at::randn({5, 16})).requires_grad());
  EXPECT_EQ(mlp->num_runs, 3);
}

TEST(CheckpointTest, SecondRunStopsAtTheLastTensorThatBackwardNeeds) {
  int num_reached_end = 0;
  const auto weight = at::randn({8, 8}).requires_grad_();
  auto y = checkpoint(
      [&](const at::Tensor& x) {
        auto result = at::mm(x.sin(), weight);
        ++num_reached_end;
        return result;
      },
      at::randn({4, 8}).requires_grad_());
  y.sum().backward();
  EXPECT_TRUE(weight.grad().defined());
  EXPECT_EQ(num_reached_end, 1);
}

TEST(CheckpointTest, TakesSeveralInputsAndOutputsOfAnyKind) {
  const auto table = at::randn({10, 6}).requires_grad_();
  const auto scale = at::randn({6}).requires_grad_();
  const auto index = at::tensor({1, 5, 1, 9});
  const Tensors inputs = {index, scale, at::Tensor(), at::ones({6})};
  auto function = [&](const Tensors& in) -> Tensors {
    EXPECT_FALSE(in[2].defined());
    EXPECT_FALSE(in[3].requires_grad());
    auto rows = at::embedding(table, in[0]);
    return {(rows * in[1]).tanh(), rows.exp() * in[3], in[0] + 1};
  };
  auto grads = [&](const Tensors& out) {
    EXPECT_FALSE(out[2].requires_grad());
    auto loss = out[0].sum() + out[1].square().sum();
    return torch::autograd::grad({loss}, {table, scale});
  };
  expect_equal(grads(checkpoint(function, inputs)), grads(function(inputs)));
}

TEST(CheckpointTest, OneOutputMayGoUnused) {
  const auto w = at::randn({4}).requires_grad_();
  auto out = checkpoint(
      [&](const Tensors& in) -> Tensors {
        return {(in[0] * w).sin(), (in[0] * w).exp()};
      },
      {at::ones({4})});
  out[1].sum().backward();
  EXPECT_TRUE(at::equal(w.grad(), w.detach().exp()));
}

TEST(CheckpointTest, MayBeNested) {
  Mlp mlp(0.2);
  auto forward = [&](const at::Tensor& t) { return mlp->forward(t); };
  const auto x = at::randn({5, 16});
  auto nested = [&](bool is_checkpointed) {
    at::manual_seed(3);
    mlp->zero_grad();
    auto inner = [&](const at::Tensor& t) {
      if (!is_checkpointed) return forward(forward(t.cos()));
      return checkpoint(forward, checkpoint(forward, t.cos()));
    };
    auto y = is_checkpointed ? checkpoint(inner, x) : inner(x);
    y.square().sum().backward();
    return gradients(mlp, x);
  };
  expect_equal(nested(true), nested(false));
}

TEST(CheckpointTest, RetainedGraphGivesTheSameGradientsAgain) {
  Mlp mlp(0.3);
  auto x = at::randn({5, 16}).requires_grad_();
  auto loss =
      checkpoint([&](const at::Tensor& t) { return mlp->forward(t); }, x)
          .square()
          .sum();
  auto first = torch::autograd::grad({loss}, {x}, {}, /*retain_graph=*/true);
  auto second = torch::autograd::grad({loss}, {x});
  expect_equal(second, first);
  EXPECT_THROW(torch::autograd::grad({loss}, {x}), c10::Error);
}

TEST(CheckpointTest, SecondDerivativesAreEqual) {
  auto x = at::randn({6}).requires_grad_();
  const auto w = at::randn({6}).requires_grad_();
  auto function = [&](const at::Tensor& t) { return (t * w).sin() * t.exp(); };
  auto second = [&](const at::Tensor& y) {
    auto g = torch::autograd::grad({y.sum()}, {x}, {}, {}, true)[0];
    return torch::autograd::grad({g.square().sum()}, {x, w});
  };
  expect_equal(second(checkpoint(function, x)), second(function(x)));
}

TEST(CheckpointTest, FunctionMayCallBackwardItself) {
  const auto w = at::randn({6}).requires_grad_();
  auto function = [&](const at::Tensor& t) {
    auto u = (t * w).sin();
    auto inner = torch::autograd::grad({(u * u).sum()}, {w}, {},
                                       /*retain_graph=*/true)[0];
    return u.exp() * inner.detach();
  };
  auto x = at::randn({6}).requires_grad_();
  auto grads = [&](const at::Tensor& y) {
    return torch::autograd::grad({y.sum()}, {x, w});
  };
  expect_equal(grads(checkpoint(function, x)), grads(function(x)));
}

TEST(CheckpointTest, HooksOnInputsRunOnce) {
  int num_calls = 0;
  auto x = at::ones({3}).requires_grad_();
  checkpoint(
      [&](const at::Tensor& t) {
        t.register_hook([&](const at::Tensor&) { ++num_calls; });
        return t.exp().sin();
      },
      x * 2)
      .sum()
      .backward();
  EXPECT_EQ(num_calls, 1);
}

TEST(CheckpointTest, AutocastOfTheFirstRunHoldsForTheSecond) {
  const auto w = at::randn({8, 8}).requires_grad_();
  const auto x = at::randn({4, 8}).requires_grad_();
  auto grads = [&](bool is_checkpointed) {
    auto function = [&](const at::Tensor& t) {
      return at::mm(at::mm(t, w).relu(), w);
    };
    at::autocast::set_autocast_enabled(at::kCPU, true);
    auto y = is_checkpointed ? checkpoint(function, x) : function(x);
    at::autocast::set_autocast_enabled(at::kCPU, false);
    at::autocast::clear_cache();
    EXPECT_EQ(y.scalar_type(), at::kBFloat16);
    return torch::autograd::grad({y.sum()}, {x, w});
  };
  expect_equal(grads(true), grads(false));
  EXPECT_FALSE(at::autocast::is_autocast_enabled(at::kCPU));
}

// Eight layers of activations against eight inputs, and in backward never
// more than one layer's activations at a time.
TEST(CheckpointTest, ActivationsAreFreedBeforeAndDuringBackward) {
  auto& allocator = CountingAllocator::instance();
  constexpr std::int64_t kNumel = 64 * 1024;
  constexpr std::int64_t kTensorBytes = kNumel * 4;
  constexpr int kNumLayers = 8;
  constexpr int kSavedPerLayer = 6;
  auto layer = [](const at::Tensor& x) {
    auto y = x;
    for (int i = 0; i < kSavedPerLayer; ++i) y = y.sin();
    return y;
  };
  struct Peaks {
    std::int64_t after_forward;
    std::int64_t in_backward;
  };
  auto measure = [&](bool is_checkpointed) {
    const std::int64_t before = allocator.live_bytes();
    Peaks peaks{0, 0};
    auto x = at::randn({kNumel}).requires_grad_();
    auto y = x;
    for (int i = 0; i < kNumLayers; ++i) {
      y = is_checkpointed ? checkpoint(layer, y) : layer(y);
      y.register_hook([&](const at::Tensor&) {
        peaks.in_backward =
            std::max(peaks.in_backward, allocator.live_bytes() - before);
      });
    }
    auto loss = y.sum();
    y.reset();
    peaks.after_forward = allocator.live_bytes() - before;
    loss.backward();
    x.reset();
    loss.reset();
    EXPECT_LE(allocator.live_bytes() - before, 1024);
    return peaks;
  };
  const Peaks plain = measure(false);
  const Peaks dropped = measure(true);
  EXPECT_GE(plain.after_forward, kNumLayers * kSavedPerLayer * kTensorBytes);
  // The input of every layer, the random states, nothing else.
  EXPECT_LE(dropped.after_forward, (kNumLayers + 1) * kTensorBytes);
  EXPECT_LE(dropped.in_backward,
            (kNumLayers + 2 + kSavedPerLayer) * kTensorBytes);
}

TEST(CheckpointTest, NestedInputsAreFreedByTheOuterOne) {
  auto& allocator = CountingAllocator::instance();
  constexpr std::int64_t kNumel = 64 * 1024;
  auto inner = [](const at::Tensor& x) { return x.sin().cos(); };
  auto outer = [&](const at::Tensor& x) {
    auto y = x;
    for (int i = 0; i < 10; ++i) y = checkpoint(inner, y);
    return y;
  };
  auto x = at::randn({kNumel}).requires_grad_();
  const std::int64_t before = allocator.live_bytes();
  auto loss = checkpoint(outer, x).sum();
  EXPECT_LE(allocator.live_bytes() - before, 2 * kNumel * 4);
  loss.backward();
  auto expected = torch::autograd::grad({[&] {
                                          auto y = x;
                                          for (int i = 0; i < 10; ++i)
                                            y = inner(y);
                                          return y.sum();
                                        }()},
                                        {x})[0];
  EXPECT_TRUE(at::equal(x.grad(), expected));
}

template <typename Action>
std::string error_of(Action action) {
  try {
    action();
  } catch (const std::exception& error) {
    return message_of(error);
  }
  return "no error";
}

TEST(CheckpointTest, ErrorOfTheSecondRunReachesTheCallerOfBackward) {
  int num_runs = 0;
  bool is_failing = true;
  auto x = at::ones({3}).requires_grad_();
  auto loss = checkpoint(
                  [&](const at::Tensor& t) {
                    if (++num_runs > 1 && is_failing) {
                      throw std::runtime_error("out of luck");
                    }
                    return t.sin().cos();
                  },
                  x)
                  .sum();
  EXPECT_THAT(error_of([&] { loss.backward({}, /*retain_graph=*/true); }),
              HasSubstr("out of luck"));
  // Nothing is left behind: it works once the cause is gone.
  is_failing = false;
  loss.backward();
  EXPECT_TRUE(at::equal(x.grad(), -x.detach().sin().sin() * x.detach().cos()));
}

TEST(CheckpointTest, SecondRunThatSavesLessIsAnError) {
  int num_runs = 0;
  auto x = at::ones({3}).requires_grad_();
  auto loss = checkpoint(
                  [&](const at::Tensor& t) {
                    return ++num_runs == 1 ? t.sin().cos().exp() : t.sin();
                  },
                  x)
                  .sum();
  const std::string text = error_of([&] { loss.backward(); });
  EXPECT_THAT(text, HasSubstr("saved at least 3 tensors"));
  EXPECT_THAT(text, HasSubstr("only 1 when it ran again"));
}

TEST(CheckpointTest, SecondRunThatSavesOtherShapesIsAnError) {
  int num_runs = 0;
  auto x = at::ones({4}).requires_grad_();
  auto loss = checkpoint(
                  [&](const at::Tensor& t) {
                    return (++num_runs == 1 ? t : t.slice(0, 0, 2)).sin().cos();
                  },
                  x)
                  .sum();
  const std::string text = error_of([&] { loss.backward(); });
  EXPECT_THAT(text, HasSubstr("Float[4] on cpu as tensor 0"));
  EXPECT_THAT(text, HasSubstr("Float[2] on cpu"));
}

TEST(CheckpointTest, InputChangedInPlaceIsAnError) {
  auto x = at::ones({3}).requires_grad_();
  auto h = x * 2;
  auto loss =
      checkpoint([](const at::Tensor& t) { return t.sin().cos(); }, h).sum();
  h.add_(1);
  EXPECT_THAT(error_of([&] { loss.backward(); }),
              HasSubstr("modified by an inplace operation"));
}

TEST(CheckpointTest, EmptyFunctionIsAnError) {
  EXPECT_THROW(
      checkpoint(std::function<at::Tensor(const at::Tensor&)>(), at::ones({1})),
      c10::ValueError);
}

}  // namespace
}  // namespace nfold
