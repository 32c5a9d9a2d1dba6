// Modules that are built straight into shards: the same bits as eager ones,
// the memory of shards only.
#include <filesystem>

#include "engine/engine_process_test.h"
#include "engine/engine_test.h"
#include "engine/live_bytes_test.h"
#include "nfold/checkpoint.h"

namespace nfold::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

// Random values, ties of both kinds, a frozen layer, buffers, a member that is
// not registered, a parameter that shares memory with it, values changed long
// after they were drawn.
struct OddImpl : torch::nn::Module {
  explicit OddImpl(std::int64_t width = 96) {
    for (int i = 0; i < 4; ++i) {
      blocks->push_back(torch::nn::Linear(width, width));
    }
    register_module("blocks", blocks);
    wte = register_module("wte", torch::nn::Embedding(50, width));
    head = register_module("head", torch::nn::Linear(width, 50));
    tied = register_parameter("tied", wte->weight);
    frozen = register_module("frozen", torch::nn::Linear(width, width));
    for (auto& param : frozen->parameters()) param.set_requires_grad(false);
    noise = register_buffer("noise", torch::randn({width, 100}));
    const auto pair = torch::randn({2, width, width});
    half = register_parameter("half", pair[0]);
    other_half = pair[1];
    unregistered = torch::rand({width, width});
    torch::nn::init::xavier_normal_(tied);
    torch::NoGradGuard no_grad;
    for (auto& param : parameters()) {
      if (param.dim() == 2) param.narrow(0, 1, 2).mul_(0.5);
    }
    tail = torch::randn({3, width});
  }

  at::Tensor loss(std::int64_t seed) {
    auto x = torch::cos(torch::arange(2 * half.size(0)) * 0.3 +
                        static_cast<double>(seed))
                 .view({2, half.size(0)})
                 .to(head->weight.dtype());
    for (const auto& block : *blocks) {
      x = torch::tanh(block->as<torch::nn::Linear>()->forward(x));
    }
    x = frozen->forward(torch::matmul(x, half));
    return (head(x) + torch::matmul(x, tied.t()))
        .to(at::kFloat)
        .square()
        .mean();
  }

  torch::nn::ModuleList blocks;
  torch::nn::Embedding wte{nullptr};
  torch::nn::Linear head{nullptr};
  torch::nn::Linear frozen{nullptr};
  at::Tensor tied, noise, half, other_half, unregistered, tail;
};
TORCH_MODULE(Odd);

Odd seeded(std::uint64_t seed, std::int64_t width = 96) {
  torch::manual_seed(seed);
  return Odd(width);
}

// The values of the module's parameters, whole.
std::map<std::string, at::Tensor> values_of(const torch::nn::Module& module) {
  const GatheredParameters scope(module.parameters());
  std::map<std::string, at::Tensor> values;
  for (const auto& param : module.named_parameters()) {
    values[param.key()] = param.value().detach().clone();
  }
  return values;
}

void expect_same(const std::map<std::string, at::Tensor>& actual,
                 const std::map<std::string, at::Tensor>& expected) {
  ASSERT_EQ(actual.size(), expected.size());
  for (const auto& [name, value] : expected) {
    EXPECT_TRUE(same_bits(actual.at(name), value)) << name;
  }
}

struct InitCase {
  int stage;
  int num_ranks;
};

class InitTest : public ::testing::TestWithParam<InitCase> {};

TEST_P(InitTest, GivesTheBitsOfEagerConstruction) {
  const auto [stage, num_ranks] = GetParam();
  const auto config = config_of({.stage = stage});
  auto eager = seeded(7);
  const auto after = torch::rand({4});
  const auto expected = values_of(*eager);
  on_ranks(num_ranks, config, [&](World& /*world*/, Mesh& mesh) {
    auto model = init(mesh, config, [] { return seeded(7); });
    if (mesh.world_size() == 1) {
      EXPECT_TRUE(same_bits(torch::rand({4}), after));
    }
    expect_same(values_of(*model), expected);
    EXPECT_TRUE(same_bits(model->noise, eager->noise));
    EXPECT_TRUE(same_bits(model->other_half, eager->other_half));
    EXPECT_TRUE(same_bits(model->unregistered, eager->unregistered));
    EXPECT_TRUE(same_bits(model->tail, eager->tail));
    EXPECT_TRUE(model->tied.is_same(model->wte->weight));
  });
}

TEST_P(InitTest, TrainsAsAnEngineOverAnEagerModelDoes) {
  const auto [stage, num_ranks] = GetParam();
  for (const std::string& more : {std::string(), std::string(kBf16)}) {
    const auto config =
        config_of({.stage = stage, .optimizer = kAdamW, .more = more});
    const auto losses_of = [&](World& world, Odd& model, Engine& engine) {
      std::vector<float> losses;
      for (int step = 0; step < 4; ++step) {
        const auto loss = model->loss(step * 10 + world.rank());
        losses.push_back(loss.item<float>());
        train_step(engine, loss);
      }
      return losses;
    };
    std::vector<std::vector<float>> eager_losses(
        static_cast<std::size_t>(num_ranks));
    std::vector<Odd> models;
    for (int i = 0; i < num_ranks; ++i) models.push_back(seeded(7));
    on_ranks(num_ranks, config, [&](World& world, Mesh& mesh) {
      const auto rank = static_cast<std::size_t>(world.rank());
      Engine engine(models[rank], mesh, config);
      eager_losses[rank] = losses_of(world, models[rank], engine);
    });
    on_ranks(num_ranks, config, [&](World& world, Mesh& mesh) {
      auto model = init(mesh, config, [] { return seeded(7); });
      Engine engine(model, mesh, config);
      EXPECT_EQ(losses_of(world, model, engine),
                eager_losses[static_cast<std::size_t>(world.rank())]);
    });
  }
}

INSTANTIATE_TEST_SUITE_P(Stages, InitTest,
                         ::testing::Values(InitCase{0, 2}, InitCase{1, 2},
                                           InitCase{2, 3}, InitCase{3, 1},
                                           InitCase{3, 2}, InitCase{3, 3},
                                           InitCase{3, 4}),
                         [](const auto& info) {
                           return fmt::format("Stage{}On{}", info.param.stage,
                                              info.param.num_ranks);
                         });

const Config& stage3() {
  static const auto config = config_of(
      {.stage = 3, .zero = R"(, "stage3_param_persistence_threshold": 0)"});
  return config;
}

// In every case rank 0's values are everybody's.
void expect_rank_0_wins(const std::function<Odd(int rank)>& build,
                        const InitOptions& options) {
  // Not on the ranks' threads, which share the random generator.
  auto eager = build(0);
  const auto expected = values_of(*eager);
  for (const int num_ranks : {2, 3}) {
    on_ranks(num_ranks, stage3(), [&](World& world, Mesh& mesh) {
      auto model =
          init(mesh, stage3(), [&] { return build(world.rank()); }, options);
      expect_same(values_of(*model), expected);
      if (world.rank() > 0) {
        EXPECT_TRUE(same_bits(model->noise, eager->noise));
      }
      Engine engine(model, mesh, stage3());
      train_step(engine, model->loss(world.rank()));
    });
  }
}

TEST(InitValuesTest, OfRank0WinWhereSeedsDiffer) {
  const auto build = [](int rank) {
    return seeded(static_cast<std::uint64_t>(7 + rank));
  };
  expect_rank_0_wins(build, {});
  expect_rank_0_wins(build, {.from_rank_0 = true});
}

TEST(InitValuesTest, OfRank0WinWhereConstructorsTakeOtherWays) {
  const auto build = [](int rank) {
    auto model = seeded(7);
    if (rank == 0) {
      torch::nn::init::constant_(model->half, 3);
    } else {
      torch::nn::init::normal_(
          model->blocks->ptr<torch::nn::LinearImpl>(2)->weight);
    }
    return model;
  };
  expect_rank_0_wins(build, {});
  expect_rank_0_wins(build, {.from_rank_0 = true});
}

TEST(InitValuesTest, ComeFromAFileInItsDtypeOrAnother) {
  const std::string path = ::testing::TempDir() + "init_weights.safetensors";
  auto saved = seeded(3);
  save_weights(*saved, path);
  const auto expected = values_of(*saved);
  const auto unregistered = seeded(7)->unregistered;
  for (const int num_ranks : {1, 2, 3}) {
    on_ranks(num_ranks, stage3(), [&](World& /*world*/, Mesh& mesh) {
      auto model =
          init(mesh, stage3(), [] { return seeded(7); }, {.weights = path});
      expect_same(values_of(*model), expected);
      EXPECT_TRUE(same_bits(model->noise, saved->noise));
      // What the file does not have is built.
      EXPECT_TRUE(same_bits(model->unregistered, unregistered));
    });
  }
  saved->to(at::kBFloat16);
  save_weights(*saved, path);
  on_ranks(2, stage3(), [&](World& /*world*/, Mesh& mesh) {
    auto model =
        init(mesh, stage3(), [] { return seeded(7); }, {.weights = path});
    for (const auto& [name, value] : values_of(*model)) {
      EXPECT_TRUE(
          same_bits(value, expected.at(name).to(at::kBFloat16).to(at::kFloat)))
          << name;
    }
  });
  EXPECT_THAT(error_of([&] {
                on_ranks(2, stage3(), [&](World& /*world*/, Mesh& mesh) {
                  init(mesh, stage3(), [] { return seeded(7, 64); },
                       {.weights = path});
                });
              }),
              AllOf(HasSubstr("mismatch: blocks.0.weight"), HasSubstr(path)));
  std::filesystem::remove(path);
}

TEST(InitValuesTest, ChangedAfterTheyWereShardedAreGatheredForTheChange) {
  const auto build = [] {
    torch::manual_seed(5);
    Tower model(128, 6);
    torch::NoGradGuard no_grad;
    for (auto& param : model->parameters()) param.normal_();
    // In another order, twice, so that they cannot all wait.
    for (int i = 0; i < 2; ++i) {
      for (auto& param : model->parameters()) param.mul_(1.25).add_(0.125);
    }
    return model;
  };
  const auto expected = values_of(*build());
  for (const int stage : {0, 2, 3}) {
    for (const std::string& more : {std::string(), std::string(kBf16)}) {
      const auto config = config_of({.stage = stage, .more = more});
      on_ranks(3, config, [&](World& /*world*/, Mesh& mesh) {
        auto model = init(mesh, config, build);
        Engine engine(model, mesh, config);
        for (const auto& param : model->named_parameters()) {
          EXPECT_TRUE(same_bits(safe_get_full_fp32_param(engine, param.value()),
                                expected.at(param.key())))
              << param.key();
        }
      });
    }
  }
}

TEST(InitScopeTest, NestedScopesDoNothingAndDisabledOnesNeither) {
  const auto expected = values_of(*seeded(7));
  on_ranks(2, stage3(), [&](World& /*world*/, Mesh& mesh) {
    auto nested = init(mesh, stage3(), [&] {
      return init(mesh, stage3(), [] { return seeded(7); });
    });
    expect_same(values_of(*nested), expected);
    auto plain =
        init(mesh, stage3(), [] { return Tower(8); }, {.enabled = false});
    EXPECT_NE(plain->head->weight.const_data_ptr(), nullptr);
    Engine engine(plain, mesh, stage3());
    train_step(engine, plain->loss(0));
  });
}

TEST(InitScopeTest, WorksWithoutAFunction) {
  const auto expected = values_of(*seeded(7));
  on_ranks(2, stage3(), [&](World& /*world*/, Mesh& mesh) {
    InitScope scope(mesh, stage3());
    torch::manual_seed(7);
    const Odd model;
    scope.finish(model.ptr());
    expect_same(values_of(*model), expected);
  });
}

TEST(InitScopeTest, ADtypeIsThatOfFactoriesInside) {
  on_ranks(2, stage3(), [](World& /*world*/, Mesh& mesh) {
    auto model =
        init(mesh, stage3(), [] { return torch::nn::Linear(200, 200); },
             {.dtype = at::kDouble});
    EXPECT_EQ(model->weight.scalar_type(), at::kDouble);
    EXPECT_EQ(torch::ones({1}).scalar_type(), at::kFloat);
    EXPECT_THAT(error_of([&] {
                  InitScope scope(mesh, stage3(), {.dtype = at::kLong});
                }),
                HasSubstr("floating-point"));
  });
}

TEST(InitScopeTest, AnEngineOfAnotherModuleMayBeMadeInside) {
  const auto expected = values_of(*seeded(7));
  auto teacher = seeded(3);
  on_ranks(1, stage3(), [&](World& /*world*/, Mesh& mesh) {
    std::unique_ptr<Engine> engine;
    auto model = init(mesh, stage3(), [&] {
      engine = std::make_unique<Engine>(teacher, mesh, stage3());
      return seeded(7);
    });
    expect_same(values_of(*model), expected);
    train_step(*engine, teacher->loss(0));
    EXPECT_THAT(error_of([&] {
                  init(mesh, stage3(), [&] {
                    auto inner = seeded(7);
                    Engine early(inner, mesh, stage3());
                    return inner;
                  });
                }),
                HasSubstr("after init has returned"));
  });
}

TEST(InitScopeTest, AnExceptionLeavesNothingBehind) {
  on_ranks(1, stage3(), [](World& /*world*/, Mesh& mesh) {
    EXPECT_THROW(
        init(mesh, stage3(), []() -> Tower { throw std::runtime_error("no"); }),
        std::runtime_error);
    EXPECT_NE(torch::randn({300, 300}).const_data_ptr(), nullptr);
    auto model = init(mesh, stage3(), [] { return seeded(7); });
    expect_same(values_of(*model), values_of(*seeded(7)));
  });
}

TEST(InitScopeTest, OneRankOfAJobOfSeveralIsAnError) {
  on_ranks(1, stage3(), [](World& /*world*/, Mesh& mesh) {
    const auto text_with = [&](const char* value) {
      ::setenv("WORLD_SIZE", value, 1);
      const auto text =
          error_of([&] { init(mesh, stage3(), [] { return Tower(8); }); });
      ::unsetenv("WORLD_SIZE");
      return text;
    };
    EXPECT_THAT(text_with("4"),
                AllOf(HasSubstr("4 ranks"), HasSubstr("from_environment")));
    EXPECT_EQ(text_with("1"), "");
    EXPECT_EQ(text_with("many"), "");
  });
}

TEST(InitScopeTest, RanksThatBuildOtherModulesAreNamed) {
  for (const bool from_rank_0 : {false, true}) {
    EXPECT_THAT(error_of([&] {
                  on_ranks(3, stage3(), [&](World& world, Mesh& mesh) {
                    init(mesh, stage3(),
                         [&] { return Tower(world.rank() == 1 ? 40 : 80); },
                         {.from_rank_0 = from_rank_0});
                  });
                }),
                AllOf(HasSubstr("rank 1"), HasSubstr("blocks.0.weight")));
  }
}

TEST(InitBeforeEngineTest, OperatorsAndScopesWork) {
  auto eager = seeded(7);
  on_ranks(2, stage3(), [&](World& world, Mesh& mesh) {
    auto model = init(mesh, stage3(), [] { return seeded(7); });
    EXPECT_EQ(model->loss(1).item<float>(), eager->loss(1).item<float>());
    {
      const GatheredParameters scope(model->half, {.modifier_rank = 1});
      torch::NoGradGuard no_grad;
      if (world.rank() == 1) model->half.fill_(2);
    }
    EXPECT_THAT(error_of([&] {
                  torch::NoGradGuard no_grad;
                  model->half.fill_(3);
                }),
                HasSubstr("half"));
    Engine engine(model, mesh, stage3());
    EXPECT_EQ(model->half.sum().item<float>(), 2 * model->half.numel());
    train_step(engine, model->loss(world.rank()));
  });
}

TEST(InitBeforeEngineTest, InsideTheFunctionAScopeGivesMemory) {
  const auto build = [] {
    auto model = seeded(7);
    const GatheredParameters scope(model->half, {.modifier_rank = 0});
    model->half.mutable_data_ptr<float>()[5] *= 2;
    return model;
  };
  auto expected = values_of(*seeded(7));
  expected.at("half").view({-1})[5].mul_(2);
  on_ranks(1, stage3(), [&](World& /*world*/, Mesh& mesh) {
    expect_same(values_of(*init(mesh, stage3(), build)), expected);
    EXPECT_THAT(error_of([&] {
                  init(mesh, stage3(), [] {
                    auto model = seeded(7);
                    GatheredParameters scope(model->half);
                    torch::NoGradGuard no_grad;
                    model->half.zero_();
                    scope.close();
                    return model;
                  });
                }),
                HasSubstr("modifier_rank"));
    EXPECT_THAT(error_of([&] {
                  init(mesh, stage3(), [] {
                    auto model = seeded(7);
                    GatheredParameters scope(model->half, {.modifier_rank = 2});
                    return model;
                  });
                }),
                HasSubstr("0 to 0"));
  });
}

TEST(InitBeforeEngineTest, AnotherConfigurationModuleOrGroupIsAnError) {
  on_ranks(2, stage3(), [](World& world, Mesh& mesh) {
    auto model = init(mesh, stage3(), [] { return Tower(16); });
    const auto other = config_of({.stage = 2});
    EXPECT_THAT(error_of([&] { Engine engine(model, mesh, other); }),
                HasSubstr("another configuration"));
    Mesh other_mesh(world, stage3());
    EXPECT_THAT(error_of([&] { Engine engine(model, other_mesh, stage3()); }),
                HasSubstr("same mesh"));
    EXPECT_THAT(error_of([&] { Engine engine(model->head, mesh, stage3()); }),
                AllOf(HasSubstr("weight"), HasSubstr("one engine")));
    {
      const GatheredParameters scope(model->head->weight);
      EXPECT_THAT(error_of([&] { Engine engine(model, mesh, stage3()); }),
                  HasSubstr("gathered"));
    }
    // Nothing of this was to its harm.
    Engine engine(model, mesh, stage3());
    train_step(engine, model->loss(world.rank()));
    EXPECT_THAT(error_of([&] { Engine second(model, mesh, stage3()); }),
                HasSubstr("one engine"));
  });
}

TEST(InitBeforeEngineTest, AModuleMayGoWithoutAnEngine) {
  on_ranks(2, stage3(), [](World& world, Mesh& mesh) {
    init(mesh, stage3(), [] { return Tower(16); });
    auto model = init(mesh, stage3(), [] { return Tower(16); });
    Engine engine(model, mesh, stage3());
    train_step(engine, model->loss(world.rank()));
  });
}

TEST(InitMemoryTest, PeakIsTheShardsAndOneParameter) {
  constexpr int kDepth = 12;
  constexpr std::int64_t kWidth = 512;
  constexpr std::int64_t kLayerBytes = kWidth * kWidth * 4;  // 1 MiB
  for (const int num_ranks : {2, 4}) {
    on_ranks(num_ranks, stage3(), [&](World& /*world*/, Mesh& mesh) {
      const auto counter = std::make_shared<LiveBytes>();
      const c10::DebugInfoGuard guard(c10::DebugInfoKind::PROFILER_STATE,
                                      counter);
      auto model = init(mesh, stage3(), [&] { return Layers(kDepth, kWidth); });
      const auto shards = kDepth * kLayerBytes / num_ranks;
      constexpr std::int64_t kSmall = 256 << 10;
      EXPECT_LE(counter->live(), shards + kSmall);
      // One parameter as it is drawn, and what comparing it takes.
      EXPECT_LE(counter->peak(), shards + 2 * kLayerBytes + kSmall);
    });
  }
}

}  // namespace
}  // namespace nfold::testing
