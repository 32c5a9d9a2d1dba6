// Reading and changing parameters, gradients and optimizer state of an engine.
#include "engine/engine_test.h"

namespace nfold::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

const std::vector<std::int64_t>& odd_sizes() {
  static const std::vector<std::int64_t> sizes{0, 1, 2, 7, 8, 1023};
  return sizes;
}

// Other values than any parameter has, -0 and the smallest number included.
at::Tensor new_value(std::int64_t size) {
  auto value = torch::cos(torch::arange(size, at::kFloat) * 1.3) * 3;
  if (size > 0) value[0] = -0.0;
  if (size > 2) value[2] = 1e-45;
  return value;
}

struct AccessCase {
  int stage;
  int num_ranks;
  bool is_bf16;
};

class EngineParamsTest : public ::testing::TestWithParam<AccessCase> {
 protected:
  static Config config() {
    return config_of({.stage = GetParam().stage,
                      .optimizer = kAdamW,
                      .more = GetParam().is_bf16 ? kBf16 : ""});
  }
  static at::Tensor in_module_dtype(const at::Tensor& value) {
    return value.to(GetParam().is_bf16 ? at::kBFloat16 : at::kFloat);
  }
  using Body = std::function<void(World&, Engine&, Vectors&)>;
  static void run(const Body& body) {
    const auto settings = config();
    on_ranks(GetParam().num_ranks, settings, [&](World& world, Mesh& mesh) {
      Vectors model(odd_sizes());
      Engine engine(model, mesh, settings);
      body(world, engine, model);
    });
  }
  // Every rank's pieces, in rank order, must make up the whole.
  class Pieces {
   public:
    Pieces() : of_rank_(static_cast<std::size_t>(GetParam().num_ranks)) {}
    void add(const World& world, at::Tensor piece) {
      of_rank_[static_cast<std::size_t>(world.rank())].push_back(
          std::move(piece));
    }
    void expect(std::size_t index, const at::Tensor& whole) const {
      if (GetParam().stage == 0) {
        for (const auto& pieces : of_rank_) {
          EXPECT_TRUE(same_bits(pieces[index], whole)) << index;
        }
        return;
      }
      std::vector<at::Tensor> pieces;
      for (const auto& rank : of_rank_) pieces.push_back(rank[index]);
      EXPECT_TRUE(same_bits(torch::cat(pieces), whole)) << index;
    }

   private:
    std::vector<std::vector<at::Tensor>> of_rank_;
  };
};

TEST_P(EngineParamsTest, ParametersAreReadAsTheyWereMade) {
  Pieces locals;
  run([&](World& world, Engine& engine, Vectors& model) {
    for (std::size_t i = 0; i < odd_sizes().size(); ++i) {
      // In bf16 runs too: the master weights are not rounded.
      EXPECT_TRUE(same_bits(safe_get_full_fp32_param(engine, model->weights[i]),
                            VectorsImpl::initial(i, odd_sizes()[i])));
      locals.add(world, safe_get_local_fp32_param(engine, model->weights[i]));
    }
  });
  for (std::size_t i = 0; i < odd_sizes().size(); ++i) {
    locals.expect(i, VectorsImpl::initial(i, odd_sizes()[i]));
  }
}

TEST_P(EngineParamsTest, SetParametersAreReadBackAndSeenByForward) {
  run([&](World& /*world*/, Engine& engine, Vectors& model) {
    for (const auto& weight : model->weights) {
      const auto value = new_value(weight.numel());
      safe_set_full_fp32_param(engine, weight, value);
      EXPECT_TRUE(same_bits(safe_get_full_fp32_param(engine, weight), value));
      EXPECT_TRUE(same_bits(weight, in_module_dtype(value)));
    }
    // The neighbours of each have kept theirs.
    double expected = 0;
    for (std::size_t i = 0; i < odd_sizes().size(); ++i) {
      const auto size = odd_sizes()[i];
      EXPECT_TRUE(same_bits(safe_get_full_fp32_param(engine, model->weights[i]),
                            new_value(size)));
      expected += (in_module_dtype(new_value(size)).to(at::kDouble) *
                   VectorsImpl::gradient(i, size, 3))
                      .sum()
                      .item<double>();
    }
    EXPECT_NEAR(model->loss(3).item<double>(), expected,
                1e-4 * std::abs(expected) + 1e-4);
  });
}

TEST_P(EngineParamsTest, LocalPiecesAreSetByTheirOwners) {
  run([&](World& /*world*/, Engine& engine, Vectors& model) {
    for (const auto& weight : model->weights) {
      const auto negated = -safe_get_local_fp32_param(engine, weight);
      const auto expected = -safe_get_full_fp32_param(engine, weight);
      safe_set_local_fp32_param(engine, weight, negated);
      EXPECT_TRUE(
          same_bits(safe_get_full_fp32_param(engine, weight), expected));
      EXPECT_TRUE(same_bits(weight, in_module_dtype(expected)));
      EXPECT_TRUE(
          same_bits(safe_get_local_fp32_param(engine, weight), negated));
    }
  });
}

TEST_P(EngineParamsTest, GradientsAreTheMeanBetweenBackwardAndStep) {
  Pieces locals;
  const auto mean = [](std::size_t i) {
    return VectorsImpl::mean_gradient(i, odd_sizes()[i], 1,
                                      GetParam().num_ranks);
  };
  // A third of eighths is rounded, in bf16 to 8 bits.
  const double tolerance = GetParam().is_bf16 ? 4e-3 : 1e-7;
  std::vector<at::Tensor> fulls(odd_sizes().size());
  run([&](World& world, Engine& engine, Vectors& model) {
    EXPECT_THAT(
        error_of([&] { safe_get_full_grad(engine, model->weights[3]); }),
        AllOf(HasSubstr("w3"), HasSubstr("from backward until the step")));
    engine.backward(model->loss(1 + world.rank()));
    for (std::size_t i = 0; i < odd_sizes().size(); ++i) {
      const auto grad = safe_get_full_grad(engine, model->weights[i]);
      EXPECT_EQ(grad.scalar_type(), at::kFloat);
      EXPECT_TRUE(torch::allclose(grad, mean(i), tolerance, tolerance));
      locals.add(world, safe_get_local_grad(engine, model->weights[i]));
      if (world.rank() == 0) fulls[i] = grad;
    }
    engine.step();
    EXPECT_NE(error_of([&] { safe_get_local_grad(engine, model->weights[3]); }),
              "");
    engine.backward(model->loss(1 + world.rank()));
    engine.zero_grad();
    EXPECT_NE(error_of([&] {
                safe_set_full_grad(engine, model->weights[3], new_value(7));
              }),
              "");
  });
  for (std::size_t i = 0; i < odd_sizes().size(); ++i) {
    locals.expect(i, fulls[i]);
  }
}

TEST_P(EngineParamsTest, SetGradientsAreReadBackAndUsed) {
  run([&](World& world, Engine& engine, Vectors& model) {
    engine.backward(model->loss(world.rank()));
    for (const auto& weight : model->weights) {
      const auto value = new_value(weight.numel());
      safe_set_full_grad(engine, weight, value);
      EXPECT_TRUE(same_bits(safe_get_full_grad(engine, weight), value));
      const auto local = safe_get_local_grad(engine, weight);
      safe_set_local_grad(engine, weight, -local);
      EXPECT_TRUE(same_bits(safe_get_full_grad(engine, weight), -value));
    }
    const auto report = engine.step();
    double square_sum = 0;
    for (const auto& weight : model->weights) {
      const auto value = new_value(weight.numel());
      square_sum += value.to(at::kDouble).square().sum().item<double>();
      // exp_avg is 0.1 of the first gradient.
      EXPECT_TRUE(torch::allclose(
          safe_get_full_optimizer_state(engine, weight, "exp_avg"),
          value * -0.1, 1e-6, 1e-9));
    }
    EXPECT_NEAR(report.grad_norm, std::sqrt(square_sum), 1e-4);
  });
}

TEST_P(EngineParamsTest, OptimizerStateIsReadAndSet) {
  run([&](World& world, Engine& engine, Vectors& model) {
    train_step(engine, model->loss(world.rank()));
    for (const auto* state : {"exp_avg", "exp_avg_sq"}) {
      for (const auto& weight : model->weights) {
        const auto value = new_value(weight.numel());
        safe_set_full_optimizer_state(engine, weight, value, state);
        EXPECT_TRUE(same_bits(
            safe_get_full_optimizer_state(engine, weight, state), value));
        const auto local =
            safe_get_local_optimizer_state(engine, weight, state);
        safe_set_local_optimizer_state(engine, weight, -local, state);
        EXPECT_TRUE(same_bits(
            safe_get_full_optimizer_state(engine, weight, state), -value));
      }
    }
    EXPECT_THAT(error_of([&] {
                  safe_get_full_optimizer_state(engine, model->weights[1],
                                                "momentum_buffer");
                }),
                AllOf(HasSubstr("momentum_buffer"), HasSubstr("exp_avg"),
                      HasSubstr("exp_avg_sq")));
  });
}

INSTANTIATE_TEST_SUITE_P(
    Stages, EngineParamsTest,
    ::testing::Values(AccessCase{0, 1, false}, AccessCase{1, 1, false},
                      AccessCase{2, 1, true}, AccessCase{0, 2, false},
                      AccessCase{1, 2, true}, AccessCase{2, 2, false},
                      AccessCase{0, 3, true}, AccessCase{1, 3, false},
                      AccessCase{2, 3, false}, AccessCase{2, 3, true}),
    [](const ::testing::TestParamInfo<AccessCase>& info) {
      return fmt::format("Stage{}On{}{}", info.param.stage,
                         info.param.num_ranks,
                         info.param.is_bf16 ? "Bf16" : "Fp32");
    });

TEST(EngineParams, StagesHoldTheSameState) {
  for (const auto* more : {"", kBf16}) {
    // [stage][tensor]
    std::vector<std::vector<at::Tensor>> found(3);
    for (int stage = 0; stage < 3; ++stage) {
      const auto config =
          config_of({.stage = stage, .optimizer = kAdamW, .more = more});
      on_ranks(3, config, [&](World& world, Mesh& mesh) {
        Vectors model(odd_sizes());
        Engine engine(model, mesh, config);
        for (int step = 0; step < 3; ++step) {
          train_step(engine, model->loss(step * 3 + world.rank()));
        }
        engine.backward(model->loss(world.rank()));
        for (const auto& weight : model->weights) {
          const at::Tensor all[] = {
              safe_get_full_fp32_param(engine, weight),
              safe_get_full_grad(engine, weight),
              safe_get_full_optimizer_state(engine, weight, "exp_avg"),
              safe_get_full_optimizer_state(engine, weight, "exp_avg_sq")};
          for (const auto& each : all) {
            if (world.rank() == 0) {
              found[static_cast<std::size_t>(stage)].push_back(each);
            }
          }
        }
      });
    }
    for (std::size_t i = 0; i < found[0].size(); ++i) {
      EXPECT_TRUE(same_bits(found[0][i], found[1][i])) << i;
      EXPECT_TRUE(same_bits(found[0][i], found[2][i])) << i;
    }
  }
}

struct TiedImpl : torch::nn::Module {
  TiedImpl() {
    first = register_parameter("first", torch::arange(5.0));
    last = register_parameter("last", first.detach());
    frozen = register_parameter("frozen", torch::arange(3.0), false);
  }
  at::Tensor first, last, frozen;
};
TORCH_MODULE(Tied);

TEST(EngineParams, TiedTensorsAreOneParameter) {
  for (const int stage : {0, 2}) {
    const auto config = config_of({.stage = stage});
    on_ranks(2, config, [&](World& /*world*/, Mesh& mesh) {
      Tied model;
      Engine engine(model, mesh, config);
      const auto value = new_value(5);
      safe_set_full_fp32_param(engine, model->last, value);
      EXPECT_TRUE(
          same_bits(safe_get_full_fp32_param(engine, model->first), value));
      EXPECT_TRUE(same_bits(model->first, value));
      engine.backward(model->first.sum() + 2 * model->last.sum());
      for (const auto& tensor : {model->first, model->last}) {
        EXPECT_TRUE(torch::equal(safe_get_full_grad(engine, tensor),
                                 torch::full({5}, 3.0)));
      }
    });
  }
}

TEST(EngineParams, UnreducedGradientsAreNotThereYet) {
  const auto config =
      config_of({.stage = 1,
                 .zero = R"(, "reduce_at_boundary": true)",
                 .more = R"(, "gradient_accumulation_steps": 2)"});
  on_ranks(2, config, [&](World&, Mesh& mesh) {
    torch::nn::Linear model(4, 4);
    Engine engine(model, mesh, config);
    const auto backward = [&] {
      engine.backward(model->forward(torch::ones({1, 4})).sum());
    };
    backward();
    EXPECT_THAT(error_of([&] { safe_get_full_grad(engine, model->weight); }),
                ::testing::HasSubstr("reduce_at_boundary"));
    engine.step();
    backward();
    EXPECT_TRUE(
        safe_get_full_grad(engine, model->weight).eq(1).all().item<bool>());
  });
}

TEST(EngineParams, FrozenParametersHaveAValueButNoGradient) {
  for (const int stage : {0, 2}) {
    const auto config = config_of({.stage = stage, .optimizer = kAdamW});
    on_ranks(2, config, [&](World& /*world*/, Mesh& mesh) {
      Tied model;
      Engine engine(model, mesh, config);
      EXPECT_TRUE(torch::equal(safe_get_full_fp32_param(engine, model->frozen),
                               torch::arange(3.0)));
      safe_set_full_fp32_param(engine, model->frozen, torch::ones({3}));
      EXPECT_TRUE(torch::equal(model->frozen, torch::ones({3})));
      engine.backward(model->first.sum());
      EXPECT_THAT(error_of([&] { safe_get_full_grad(engine, model->frozen); }),
                  HasSubstr("frozen"));
      EXPECT_THAT(error_of([&] {
                    safe_get_full_optimizer_state(engine, model->frozen,
                                                  "exp_avg");
                  }),
                  HasSubstr("frozen"));
      engine.step();
      EXPECT_TRUE(torch::equal(model->frozen, torch::ones({3})));
    });
  }
}

TEST(EngineParams, WrongTensorsAndShapesAreErrors) {
  const auto config = config_of({.optimizer = kAdamW});
  on_ranks(2, config, [&](World& /*world*/, Mesh& mesh) {
    Vectors model(std::vector<std::int64_t>{6, 4});
    Engine engine(model, mesh, config);
    const auto& weight = model->weights[0];
    EXPECT_THAT(
        error_of([&] { safe_get_full_fp32_param(engine, torch::ones({6})); }),
        HasSubstr("not a parameter"));
    EXPECT_THAT(
        error_of([&] { safe_get_full_fp32_param(engine, weight.detach()); }),
        HasSubstr("not a parameter"));
    EXPECT_THAT(error_of([&] {
                  safe_set_full_fp32_param(engine, weight, torch::ones({5}));
                }),
                AllOf(HasSubstr("w0"), HasSubstr("[6]"), HasSubstr("[5]")));
    EXPECT_THAT(error_of([&] {
                  safe_set_local_fp32_param(engine, weight, torch::ones({5}));
                }),
                AllOf(HasSubstr("w0"), HasSubstr("[5]")));
    // Nothing was changed by any of it.
    EXPECT_TRUE(same_bits(weight, VectorsImpl::initial(0, 6)));
  });
}

TEST(EngineParams, WithoutOptimizerThereIsNoState) {
  const auto config = config_of({.optimizer = ""});
  on_ranks(1, config, [&](World& /*world*/, Mesh& mesh) {
    Vectors model(std::vector<std::int64_t>{6});
    Engine engine(model, mesh, config);
    EXPECT_THAT(error_of([&] {
                  safe_get_full_optimizer_state(engine, model->weights[0],
                                                "exp_avg");
                }),
                HasSubstr("no optimizer"));
  });
}

}  // namespace
}  // namespace nfold::testing
