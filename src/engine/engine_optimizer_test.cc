// Every optimizer over shards against torch's, or its formula, on one process.
#include <cmath>

#include "engine/engine_test.h"

namespace nfold::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

const std::vector<std::int64_t>& sizes() {
  static const std::vector<std::int64_t> sizes{33, 8, 100, 1};
  return sizes;
}

constexpr int kNumSteps = 5;

using Params = std::vector<at::Tensor>;
using PlainFactory =
    std::function<std::unique_ptr<torch::optim::Optimizer>(Vectors&)>;

// Weights after some steps with the mean gradient of two ranks.
Params train_plain(const PlainFactory& factory) {
  Vectors model(sizes());
  const auto optimizer = factory(model);
  for (int step = 0; step < kNumSteps; ++step) {
    for (std::size_t i = 0; i < sizes().size(); ++i) {
      model->weights[i].mutable_grad() =
          VectorsImpl::mean_gradient(i, sizes()[i], step * 2, 2);
    }
    optimizer->step();
  }
  return model->weights;
}

struct ShardedRun {
  ConfigText text{};
  std::function<EngineOptions(Vectors&)> options{};
};

Params train_sharded(const ShardedRun& run) {
  Params weights;
  const auto config = config_of(run.text);
  on_ranks(2, config, [&](World& world, Mesh& mesh) {
    Vectors model(sizes());
    Engine engine(model, mesh, config,
                  run.options ? run.options(model) : EngineOptions{});
    for (int step = 0; step < kNumSteps; ++step) {
      train_step(engine, model->loss(step * 2 + world.rank()));
    }
    if (world.rank() == 1) weights = model->weights;
  });
  return weights;
}

void expect_close(const Params& found, const Params& expected) {
  ASSERT_EQ(found.size(), expected.size());
  for (std::size_t i = 0; i < found.size(); ++i) {
    EXPECT_TRUE(torch::allclose(found[i], expected[i], 2e-6, 1e-6))
        << "w" << i << " differs by "
        << (found[i] - expected[i]).abs().max().item<double>();
    // Training did something.
    EXPECT_FALSE(torch::allclose(found[i], VectorsImpl::initial(i, sizes()[i]),
                                 1e-5, 1e-5));
  }
}

template <typename Optimizer, typename Options>
PlainFactory plain(const Options& options) {
  return [options](Vectors& model) {
    return std::make_unique<Optimizer>(model->parameters(), options);
  };
}

template <typename Optimizer, typename Options>
std::function<EngineOptions(Vectors&)> own_factory(const Options& options) {
  return [options](Vectors&) {
    EngineOptions made;
    made.optimizer_factory =
        [options](std::vector<torch::optim::OptimizerParamGroup> groups) {
          return std::make_unique<Optimizer>(std::move(groups), options);
        };
    return made;
  };
}

const int kStages[] = {0, 1, 2};

TEST(EngineOptimizers, ConfiguredTypesEqualTorch) {
  using namespace torch::optim;
  struct Type {
    const char* json;
    PlainFactory factory;
  };
  const std::vector<Type> types{
      {R"({"type": "AdamW", "params": {"lr": 0.01, "weight_decay": 0.1,
           "betas": [0.8, 0.95]}})",
       plain<AdamW>(AdamWOptions(0.01).weight_decay(0.1).betas({0.8, 0.95}))},
      {R"({"type": "Adam", "params": {"lr": 0.01, "weight_decay": 0.1}})",
       plain<AdamW>(AdamWOptions(0.01).weight_decay(0.1))},
      {R"({"type": "Adam", "params": {"lr": 0.01, "weight_decay": 0.1,
           "adam_w_mode": false}})",
       plain<Adam>(AdamOptions(0.01).weight_decay(0.1))},
      {R"({"type": "Adam", "params": {"lr": 0.01, "weight_decay": 0.1,
           "adam_w_mode": false, "torch_adam": true}})",
       plain<Adam>(AdamOptions(0.01).weight_decay(0.1))},
      {R"({"type": "AdamW", "params": {"lr": 0.01, "amsgrad": true}})",
       plain<AdamW>(AdamWOptions(0.01).weight_decay(0).amsgrad(true))},
      {R"({"type": "SGD", "params": {"lr": 0.05, "momentum": 0.9,
           "nesterov": true, "weight_decay": 0.1}})",
       plain<SGD>(
           SGDOptions(0.05).momentum(0.9).nesterov(true).weight_decay(0.1))},
      {R"({"type": "SGD", "params": {"lr": 0.05, "momentum": 0.9,
           "dampening": 0.2}})",
       plain<SGD>(SGDOptions(0.05).momentum(0.9).dampening(0.2))},
      {R"({"type": "Adagrad", "params": {"lr": 0.05, "lr_decay": 0.1,
           "initial_accumulator_value": 0.2, "eps": 1e-10}})",
       plain<Adagrad>(AdagradOptions(0.05)
                          .lr_decay(0.1)
                          .initial_accumulator_value(0.2)
                          .eps(1e-10))},
      {R"({"type": "RMSprop", "params": {"lr": 0.01, "momentum": 0.5}})",
       plain<RMSprop>(RMSpropOptions(0.01).momentum(0.5))},
  };
  for (const auto& type : types) {
    const auto expected = train_plain(type.factory);
    for (const int stage : kStages) {
      SCOPED_TRACE(fmt::format("{} stage {}", type.json, stage));
      expect_close(
          train_sharded({.text = {.stage = stage, .optimizer = type.json}}),
          expected);
    }
  }
}

TEST(EngineOptimizers, LionFollowsItsFormula) {
  constexpr double kLr = 0.01, kBeta1 = 0.9, kBeta2 = 0.99, kDecay = 0.1;
  Params expected;
  for (std::size_t i = 0; i < sizes().size(); ++i) {
    auto weight = VectorsImpl::initial(i, sizes()[i]);
    auto average = torch::zeros_like(weight);
    for (int step = 0; step < kNumSteps; ++step) {
      const auto grad = VectorsImpl::mean_gradient(i, sizes()[i], step * 2, 2);
      const auto update = (average * kBeta1 + grad * (1 - kBeta1)).sign();
      weight = weight * (1 - kLr * kDecay) - update * kLr;
      average = average * kBeta2 + grad * (1 - kBeta2);
    }
    expected.push_back(weight);
  }
  for (const int stage : kStages) {
    expect_close(
        train_sharded({.text = {.stage = stage,
                                .optimizer =
                                    R"({"type": "Lion", "params": {"lr": 0.01,
                                   "betas": [0.9, 0.99],
                                   "weight_decay": 0.1}})"}}),
        expected);
  }
}

TEST(EngineOptimizers, TheUsersOwnFactoriesEqualTorch) {
  using namespace torch::optim;
  const auto adamw = AdamWOptions(0.01).weight_decay(0.1);
  const auto sgd = SGDOptions(0.05).momentum(0.9);
  const auto rmsprop = RMSpropOptions(0.01).centered(true);
  for (const int stage : kStages) {
    SCOPED_TRACE(stage);
    const ConfigText text{.stage = stage, .optimizer = ""};
    expect_close(train_sharded({text, own_factory<AdamW>(adamw)}),
                 train_plain(plain<AdamW>(adamw)));
    expect_close(train_sharded({text, own_factory<SGD>(sgd)}),
                 train_plain(plain<SGD>(sgd)));
    expect_close(train_sharded({text, own_factory<RMSprop>(rmsprop)}),
                 train_plain(plain<RMSprop>(rmsprop)));
  }
}

// w0 and w2 as configured, w1 with another rate, w3 with another decay.
std::vector<ParamGroup> three_groups(const Params& weights) {
  ParamGroup first{{weights[0], weights[2]}, std::nullopt, std::nullopt};
  ParamGroup second{{weights[1]}, 0.05, std::nullopt};
  ParamGroup third{{weights[3]}, std::nullopt, 0.5};
  return {first, second, third};
}

Params train_plain_groups() {
  using namespace torch::optim;
  return train_plain([](Vectors& model) {
    std::vector<OptimizerParamGroup> groups;
    for (const auto& group : three_groups(model->weights)) {
      groups.emplace_back(
          group.params,
          std::make_unique<AdamWOptions>(
              AdamWOptions(group.lr.value_or(0.01))
                  .weight_decay(group.weight_decay.value_or(0.1))));
    }
    return std::make_unique<AdamW>(std::move(groups), AdamWOptions(0.01));
  });
}

TEST(EngineOptimizers, GroupsHaveTheirOwnRateAndDecay) {
  const auto expected = train_plain_groups();
  for (const int stage : kStages) {
    SCOPED_TRACE(stage);
    expect_close(train_sharded({{.stage = stage, .optimizer = kAdamW},
                                [](Vectors& model) {
                                  EngineOptions options;
                                  options.param_groups =
                                      three_groups(model->weights);
                                  return options;
                                }}),
                 expected);
    expect_close(
        train_sharded({{.stage = stage, .optimizer = ""},
                       [](Vectors& model) {
                         auto options = own_factory<torch::optim::AdamW>(
                             torch::optim::AdamWOptions(0.01).weight_decay(
                                 0.1))(model);
                         options.param_groups = three_groups(model->weights);
                         return options;
                       }}),
        expected);
  }
}

// Raised for options that the function makes from the model.
std::string error_of_groups(
    const std::function<std::vector<ParamGroup>(Vectors&)>& groups) {
  const auto config = config_of({.optimizer = kAdamW});
  std::string error;
  on_ranks(1, config, [&](World& /*world*/, Mesh& mesh) {
    Vectors model(sizes());
    model->weights[3].set_requires_grad(false);
    EngineOptions options;
    options.param_groups = groups(model);
    error = error_of([&] { Engine(model, mesh, config, options); });
  });
  return error;
}

TEST(EngineOptimizers, WrongGroupsAreErrorsThatNameTheParameter) {
  EXPECT_EQ(error_of_groups([](Vectors& model) {
              const auto& w = model->weights;
              return std::vector<ParamGroup>{{{w[0], w[1], w[2]}, {}, {}}};
            }),
            "");
  EXPECT_THAT(
      error_of_groups([](Vectors& model) {
        const auto& w = model->weights;
        return std::vector<ParamGroup>{{{w[0], w[1], w[2]}, {}, {}},
                                       {{w[1]}, {}, {}}};
      }),
      AllOf(HasSubstr("w1"), HasSubstr("group 0"), HasSubstr("group 1")));
  EXPECT_THAT(
      error_of_groups([](Vectors& model) {
        return std::vector<ParamGroup>{{{model->weights[1]}, {}, {}}};
      }),
      AllOf(HasSubstr("w0"), HasSubstr("w2"), HasSubstr("no parameter group")));
  EXPECT_THAT(error_of_groups([](Vectors& model) {
                const auto& w = model->weights;
                return std::vector<ParamGroup>{
                    {{w[0], w[1], w[2], torch::ones({3})}, {}, {}}};
              }),
              HasSubstr("not a parameter"));
  EXPECT_THAT(error_of_groups([](Vectors& model) {
                return std::vector<ParamGroup>{{model->weights, {}, {}}};
              }),
              AllOf(HasSubstr("frozen")));
}

TEST(EngineOptimizers, WithoutOneGradientsAreStillReduced) {
  for (const int stage : kStages) {
    const auto config = config_of({.stage = stage, .optimizer = ""});
    on_ranks(2, config, [&](World& world, Mesh& mesh) {
      Vectors model(sizes());
      Engine engine(model, mesh, config);
      engine.backward(model->loss(world.rank()));
      EXPECT_TRUE(
          torch::equal(safe_get_full_grad(engine, model->weights[2]),
                       VectorsImpl::mean_gradient(2, sizes()[2], 0, 2)));
      const auto report = engine.step();
      EXPECT_GT(report.grad_norm, 0);
      EXPECT_EQ(report.step, 1);
      EXPECT_TRUE(
          same_bits(model->weights[2], VectorsImpl::initial(2, sizes()[2])));
    });
  }
}

TEST(EngineOptimizers, TheScheduleSetsTheRateOfEachStep) {
  const auto config =
      config_of({.more = R"(, "scheduler": {"type": "WarmupLR", "params": {
           "warmup_min_lr": 0, "warmup_max_lr": 0.1, "warmup_num_steps": 4,
           "warmup_type": "linear"}})"});
  on_ranks(2, config, [&](World& world, Mesh& mesh) {
    Vectors model(sizes());
    Engine engine(model, mesh, config);
    auto expected = VectorsImpl::initial(0, sizes()[0]);
    std::vector<double> rates;
    for (int step = 0; step < 6; ++step) {
      const auto report =
          train_step(engine, model->loss(step * 2 + world.rank()));
      rates.push_back(report.lr);
      expected -=
          report.lr * VectorsImpl::mean_gradient(0, sizes()[0], step * 2, 2);
    }
    EXPECT_THAT(rates,
                ::testing::Pointwise(::testing::DoubleNear(1e-12),
                                     {0.0, 0.0, 0.025, 0.05, 0.075, 0.1}));
    EXPECT_TRUE(torch::allclose(model->weights[0], expected, 1e-6, 1e-6));
  });
}

TEST(EngineOptimizers, ClippingBoundsTheNorm) {
  double norm_square = 0;
  for (std::size_t i = 0; i < sizes().size(); ++i) {
    norm_square += VectorsImpl::mean_gradient(i, sizes()[i], 0, 2)
                       .square()
                       .sum()
                       .item<double>();
  }
  const double norm = std::sqrt(norm_square);
  for (const double clip : {0.0, 0.5, 1000.0}) {
    const auto config = config_of({.clipping = fmt::format("{:.1f}", clip)});
    on_ranks(2, config, [&](World& world, Mesh& mesh) {
      Vectors model(sizes());
      Engine engine(model, mesh, config);
      const auto report = train_step(engine, model->loss(world.rank()));
      const double factor = clip == 0.5 ? clip / (norm + 1e-6) : 1;
      EXPECT_NEAR(report.grad_norm, norm, 1e-6 * norm);
      EXPECT_NEAR(report.clipped_grad_norm, norm * factor, 1e-5);
      const auto expected =
          VectorsImpl::initial(2, sizes()[2]) -
          0.25 * factor * VectorsImpl::mean_gradient(2, sizes()[2], 0, 2);
      EXPECT_TRUE(torch::allclose(model->weights[2], expected, 1e-6, 1e-6));
    });
  }
}

TEST(EngineOptimizers, SetLrIsUsedByTheNextStep) {
  const auto config = config_of({});
  on_ranks(2, config, [&](World& world, Mesh& mesh) {
    Vectors model(sizes());
    EngineOptions options;
    options.param_groups = {
        {{model->weights[0]}, 0.5, {}},
        {{model->weights[1], model->weights[2], model->weights[3]}, {}, {}}};
    Engine engine(model, mesh, config, options);
    EXPECT_THAT(engine.lr(), ::testing::ElementsAre(0.5, 0.25));
    engine.set_lr(2);
    EXPECT_THAT(engine.lr(), ::testing::ElementsAre(2, 2));
    EXPECT_EQ(train_step(engine, model->loss(world.rank())).lr, 2);
    EXPECT_TRUE(
        torch::allclose(model->weights[0],
                        VectorsImpl::initial(0, sizes()[0]) -
                            2 * VectorsImpl::mean_gradient(0, sizes()[0], 0, 2),
                        1e-6, 1e-6));
  });
}

}  // namespace
}  // namespace nfold::testing
