// Wrong use, unusual models, and ranks that do not do the same.
#include "engine/engine_test.h"

namespace nfold::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

// Runs on one rank and returns the text of the error.
std::string error_on_one_rank(
    const std::function<void(Engine&, Vectors&)>& body) {
  const auto config = config_of({});
  std::string error;
  on_ranks(1, config, [&](World& /*world*/, Mesh& mesh) {
    Vectors model(std::vector<std::int64_t>{6, 4});
    Engine engine(model, mesh, config);
    error = error_of([&] { body(engine, model); });
  });
  return error;
}

TEST(EngineErrors, StepNeedsABackward) {
  EXPECT_THAT(
      error_on_one_rank([](Engine& engine, Vectors&) { engine.step(); }),
      AllOf(HasSubstr("rank 0"), HasSubstr("before backward")));
  EXPECT_THAT(error_on_one_rank([](Engine& engine, Vectors& model) {
                train_step(engine, model->loss(0));
                engine.step();
              }),
              AllOf(HasSubstr("step 2"), HasSubstr("before backward")));
}

TEST(EngineErrors, LossMustBeOneElement) {
  EXPECT_THAT(error_on_one_rank([](Engine& engine, Vectors& model) {
                engine.backward(model->weights[0] * 2);
              }),
              AllOf(HasSubstr("one element"), HasSubstr("[6]")));
  EXPECT_THAT(error_on_one_rank([](Engine& engine, Vectors&) {
                engine.backward(at::Tensor());
              }),
              HasSubstr("undefined"));
}

TEST(EngineErrors, LossMustDependOnTheModel) {
  EXPECT_THAT(error_on_one_rank([](Engine& engine, Vectors& model) {
                engine.backward(model->loss(0).detach());
              }),
              HasSubstr("does not depend"));
  EXPECT_THAT(error_on_one_rank([](Engine& engine, Vectors& model) {
                const torch::NoGradGuard no_grad;
                engine.backward(model->loss(0));
              }),
              HasSubstr("NoGradGuard"));
}

TEST(EngineErrors, GradientsOfGradientsNameTheAlternative) {
  const auto error = error_on_one_rank([](Engine& engine, Vectors& model) {
    auto hidden = model->weights[0] * 1.0;
    hidden.register_hook([weight = model->weights[1]](at::Tensor grad) {
      const at::AutoGradMode grad_mode(true);
      // As a gradient penalty written in the wrong place would.
      (weight * weight)
          .sum()
          .backward({}, /*retain_graph=*/true,
                    /*create_graph=*/true);
      return grad;
    });
    engine.backward(hidden.sum());
  });
  EXPECT_THAT(error, AllOf(HasSubstr("w1"), HasSubstr("create_graph"),
                           HasSubstr("torch::autograd::grad")));
}

TEST(EngineErrors, BackwardOfTheEngineInsideItsBackward) {
  const auto error = error_on_one_rank([](Engine& engine, Vectors& model) {
    auto hidden = model->weights[0] * 1.0;
    hidden.register_hook([&engine, &model](at::Tensor grad) {
      const at::AutoGradMode grad_mode(true);
      engine.backward(model->term(1, 0));
      return grad;
    });
    engine.backward(hidden.sum());
  });
  EXPECT_THAT(error, HasSubstr("inside a backward"));
}

constexpr char kStage3[] = R"(, "stage3_param_persistence_threshold": 0)";

TEST(EngineErrors, ConvertingAShardedModelIsFoundByTheNextBackward) {
  for (const int stage : {2, 3}) {
    const auto config = config_of({.stage = stage, .zero = kStage3});
    on_ranks(2, config, [&](World& /*world*/, Mesh& mesh) {
      Tower model(8);
      Engine engine(model, mesh, config);
      model->to(at::kDouble);
      const auto loss = torch::ones({}, torch::requires_grad());
      EXPECT_THAT(error_of([&] { engine.backward(loss); }),
                  AllOf(HasSubstr("blocks.0.weight is no longer the tensor "
                                  "that was sharded"),
                        HasSubstr("Module::to")));
    });
  }
}

TEST(EngineErrors, ARawAccessToAShardedParameterNamesIt) {
  const auto config = config_of({.stage = 3, .zero = kStage3});
  on_ranks(2, config, [&](World& /*world*/, Mesh& mesh) {
    Tower model(8);
    Engine engine(model, mesh, config);
    EXPECT_THAT(error_of([&] { model->head->weight.data_ptr<float>(); }),
                HasSubstr("head.weight"));
  });
}

TEST(EngineErrors, ThawingAShardedParameterIsFoundByTheNextBackward) {
  const auto config = config_of({.stage = 3, .zero = kStage3});
  on_ranks(2, config, [&](World& world, Mesh& mesh) {
    Tower model(8);
    Engine engine(model, mesh, config);
    model->head->bias.set_requires_grad(false);
    EXPECT_THAT(error_of([&] { engine.backward(model->loss(world.rank())); }),
                HasSubstr("head.bias was trainable when it was sharded"));
  });
}

TEST(EngineErrors, BackwardAfterTheStepThatChangedTheWeightsIsAnError) {
  for (const int stage : {2, 3}) {
    const auto config = config_of({.stage = stage, .zero = kStage3});
    on_ranks(2, config, [&](World& world, Mesh& mesh) {
      Tower model(8);
      Engine engine(model, mesh, config);
      const auto early = model->loss(world.rank());
      train_step(engine, model->loss(1 + world.rank()));
      EXPECT_THAT(
          error_of([&] { engine.backward(early); }),
          AllOf(HasSubstr("Run forward again"), HasSubstr("head.weight")));
      EXPECT_TRUE(train_step(engine, model->loss(world.rank())).is_boundary);
    });
  }
}

TEST(EngineErrors, ARankThatTakesAnotherBranchIsNamedByAll) {
  const auto config = config_of({.stage = 3, .zero = kStage3});
  on_ranks(
      2, config,
      [&](World& world, Mesh& mesh) {
        Tower model(8);
        Engine engine(model, mesh, config);
        train_step(engine, model->loss(world.rank()));
        const auto x = torch::ones({1, 8});
        const auto block = model->blocks[world.rank()];
        const auto error = error_of(
            [&] { block->as<torch::nn::Linear>()->forward(x).sum().item(); });
        EXPECT_THAT(error, HasSubstr("step 2"));
        EXPECT_THAT(error,
                    HasSubstr(c10::str("unshard blocks.", world.rank())));
      },
      kOverGloo);
}

TEST(EngineErrors, AnEngineIsSpentAfterUnshardModel) {
  const auto config = config_of({.stage = 3, .zero = kStage3});
  on_ranks(2, config, [&](World& world, Mesh& mesh) {
    Tower model(8);
    Engine engine(model, mesh, config);
    engine.unshard_model();
    EXPECT_THAT(error_of([&] { engine.backward(model->loss(world.rank())); }),
                HasSubstr("after unshard_model"));
  });
}

TEST(EngineErrors, ANullModuleIsAnError) {
  const auto config = config_of({});
  on_ranks(1, config, [&](World& /*world*/, Mesh& mesh) {
    EXPECT_THAT(error_of([&] {
                  Engine(std::shared_ptr<torch::nn::Module>(), mesh, config);
                }),
                HasSubstr("null"));
  });
}

TEST(EngineErrors, SetLrNeedsAnOptimizer) {
  const auto config = config_of({.optimizer = ""});
  on_ranks(1, config, [&](World& /*world*/, Mesh& mesh) {
    Vectors model(std::vector<std::int64_t>{6});
    Engine engine(model, mesh, config);
    EXPECT_THAT(error_of([&] { engine.set_lr(1); }), HasSubstr("no optimizer"));
    EXPECT_TRUE(engine.lr().empty());
  });
}

// Rank 1 runs one more backward than the others: its gradients meet their
// gradient norm.
TEST(EngineErrors, RanksThatDoNotDoTheSameAllGetAnError) {
  const auto config =
      config_of({.more = R"(, "managed_gradient_accumulation": false)"});
  std::vector<std::string> errors(3);
  ThreadWorldOptions options;
  options.timeout = std::chrono::seconds(5);
  const auto start = std::chrono::steady_clock::now();
  on_ranks(
      3, config,
      [&](World& world, Mesh& mesh) {
        Vectors model(std::vector<std::int64_t>{6, 4});
        Engine engine(model, mesh, config);
        train_step(engine, model->loss(0));
        errors[static_cast<std::size_t>(world.rank())] = error_of([&] {
          engine.backward(model->loss(1));
          if (world.rank() == 1) engine.backward(model->loss(2));
          engine.step();
        });
      },
      options);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
  for (const auto& error : errors) {
    EXPECT_THAT(error, AllOf(HasSubstr("reduce_scatter"),
                             HasSubstr("all_gather"), HasSubstr("rank 1")));
  }
}

TEST(EngineErrors, RanksWithDifferentModelsAllGetAnError) {
  const auto config = config_of({});
  std::vector<std::string> errors(2);
  on_ranks(2, config, [&](World& world, Mesh& mesh) {
    Vectors model(std::vector<std::int64_t>{6, 4 + world.rank()});
    errors[static_cast<std::size_t>(world.rank())] =
        error_of([&] { Engine(model, mesh, config); });
  });
  for (const auto& error : errors) EXPECT_THAT(error, HasSubstr("w1"));
}

struct MixedImpl : torch::nn::Module {
  MixedImpl() {
    single = register_parameter("single", torch::arange(9.0));
    dual = register_parameter("dual", torch::arange(7, at::kDouble) / 3);
    empty = register_parameter("empty", torch::zeros({0, 4}));
  }
  at::Tensor loss(double factor) {
    return (single.to(at::kDouble).square().sum() + dual.square().sum() +
            empty.sum().to(at::kDouble)) *
           factor;
  }
  at::Tensor single, dual, empty;
};
TORCH_MODULE(Mixed);

TEST(EngineModels, FloatDoubleAndEmptyParametersTrainTogether) {
  for (const int stage : {0, 1, 2}) {
    const auto config = config_of({.stage = stage, .optimizer = kAdamW});
    on_ranks(2, config, [&](World& world, Mesh& mesh) {
      Mixed model;
      Mixed plain;
      Engine engine(model, mesh, config);
      torch::optim::AdamW optimizer(
          plain->parameters(),
          torch::optim::AdamWOptions(0.01).weight_decay(0.1));
      for (int step = 0; step < 4; ++step) {
        const auto report = train_step(engine, model->loss(0.5 + world.rank()));
        EXPECT_FALSE(report.is_skipped);
        optimizer.zero_grad();
        plain->loss(1.0).backward();
        optimizer.step();
      }
      EXPECT_EQ(model->dual.scalar_type(), at::kDouble);
      EXPECT_TRUE(torch::allclose(model->single, plain->single, 1e-6, 1e-6));
      EXPECT_TRUE(torch::allclose(model->dual, plain->dual, 1e-12, 1e-12));
    });
  }
}

TEST(EngineModels, AModelWithoutTrainableParametersHasNothingToStep) {
  const auto config = config_of({.optimizer = kAdamW});
  on_ranks(2, config, [&](World& /*world*/, Mesh& mesh) {
    Vectors model(std::vector<std::int64_t>{6});
    model->weights[0].set_requires_grad(false);
    Engine engine(model, mesh, config);
    EXPECT_THAT(error_of([&] { engine.backward(model->loss(0)); }),
                HasSubstr("does not depend"));
  });
}

struct NormedImpl : torch::nn::Module {
  NormedImpl() {
    linear = register_module("linear", torch::nn::Linear(4, 3));
    norm = register_module("norm", torch::nn::BatchNorm1d(3));
  }
  at::Tensor forward(const at::Tensor& x) { return norm(linear(x)); }
  torch::nn::Linear linear{nullptr};
  torch::nn::BatchNorm1d norm{nullptr};
};
TORCH_MODULE(Normed);

TEST(EngineModels, BuffersFollowTheParametersOrBufferDtype) {
  struct Way {
    std::string more;
    at::ScalarType expected;
  };
  for (const auto& way :
       {Way{"", at::kFloat}, Way{kBf16, at::kBFloat16},
        Way{std::string(kBf16) + R"(, "data_types": {"buffer_dtype": "fp32"})",
            at::kFloat}}) {
    const auto config = config_of({.more = way.more});
    on_ranks(2, config, [&](World& world, Mesh& mesh) {
      Normed model;
      Engine engine(model, mesh, config);
      EXPECT_EQ(model->norm->running_mean.scalar_type(), way.expected);
      EXPECT_EQ(model->norm->num_batches_tracked.scalar_type(), at::kLong);
      // torch normalises bf16 with bf16 statistics only.
      if (model->linear->weight.scalar_type() != way.expected) return;
      const auto x = torch::arange(20.0).view({5, 4}) + world.rank();
      const auto y = model(x.to(model->linear->weight.dtype()));
      train_step(engine, y.to(at::kFloat).square().mean());
      EXPECT_EQ(model->norm->num_batches_tracked.item<std::int64_t>(), 1);
      EXPECT_NE(model->norm->running_mean[0].item<float>(), 0);
    });
  }
}

// Two stages of one rank.
class TwoStages : public GroupProvider {
 public:
  explicit TwoStages(const World& world) {
    for (int rank = 0; rank < 2; ++rank) {
      auto made = world.new_group("data", {rank});
      if (made) data_ = std::move(made);
    }
    stages_ = world.new_group("stages", {0, 1});
  }
  Group* data_parallel_group() const override { return data_.get(); }
  Group* model_parallel_group() const override { return nullptr; }
  Group* pipeline_parallel_group() const override { return stages_.get(); }

 private:
  std::unique_ptr<Group> data_;
  std::unique_ptr<Group> stages_;
};

TEST(EngineErrors, PipelineStagesOfAProviderAreNotSupported) {
  const auto config = config_of({});
  run_ranks(2, [&](World& world) {
    TwoStages stages(world);
    Mesh mesh(world, config, stages);
    Tower model(16);
    EXPECT_THAT(error_of([&] { Engine engine(model, mesh, config); }),
                HasSubstr("pipeline stages"));
  });
}

}  // namespace
}  // namespace nfold::testing
