// Mixtures of experts under the engine: the same training for every expert
// size and at every stage.
#include <map>
#include <mutex>

#include "engine/engine_test.h"
#include "nfold/moe.h"

namespace nfold::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr std::int64_t kWidth = 12;
constexpr std::int64_t kNumExperts = 12;  // divides by 1, 2, 3, 4 and 6

// By name, so that ranks with other experts agree.
void fill_by_name(torch::nn::Module& module) {
  torch::NoGradGuard no_grad;
  for (auto& item : module.named_parameters()) {
    double phase = 0;
    for (const char c : item.key()) phase = phase * 0.61 + c;
    auto& param = item.value();
    param.copy_(torch::sin(torch::arange(param.numel()) * 0.7 + phase)
                    .view(param.sizes()) /
                std::sqrt(static_cast<double>(kWidth)));
  }
}

struct MixtureNetImpl : torch::nn::Module {
  MixtureNetImpl(Group* expert_group, int top_k) {
    first = register_module("first", torch::nn::Linear(kWidth, kWidth));
    mixture = register_module(
        "mixture",
        MixtureOfExperts(MixtureOptions{.hidden_size = kWidth,
                                        .num_experts = kNumExperts,
                                        .top_k = top_k,
                                        .capacity_factor = 1.25,
                                        .min_capacity = 2,
                                        .expert_group = expert_group},
                         [] {
                           return torch::nn::Sequential(
                               torch::nn::Linear(kWidth, 2 * kWidth),
                               torch::nn::Tanh(),
                               torch::nn::Linear(2 * kWidth, kWidth));
                         }));
    head = register_module("head", torch::nn::Linear(kWidth, 3));
  }

  // Depends on the seed.
  at::Tensor loss(std::int64_t seed, std::int64_t num_tokens = 16) {
    const auto x = torch::cos(torch::arange(num_tokens * kWidth) * 0.3 +
                              static_cast<double>(seed % 7))
                       .view({num_tokens, kWidth})
                       .to(head->weight.dtype());
    const auto made = mixture->forward(torch::tanh(first(x)) * 3);
    return head(x + made.output).to(at::kFloat).square().sum() /
               static_cast<double>(16) +
           0.01 * made.aux_loss;
  }

  torch::nn::Linear first{nullptr};
  MixtureOfExperts mixture{nullptr};
  torch::nn::Linear head{nullptr};
};
TORCH_MODULE(MixtureNet);

Group* expert_group(const Mesh& mesh, int expert_size) {
  return expert_size == 1 ? nullptr : &mesh.expert(expert_size);
}

MixtureNet mixture_net(const Mesh& mesh, int expert_size, int top_k) {
  MixtureNet net(expert_group(mesh, expert_size), top_k);
  fill_by_name(*net);
  return net;
}

Config expert_config(int stage, int expert_size, const std::string& more = "",
                     const std::string& optimizer = kAdamW) {
  return config_of(
      {.stage = stage,
       .optimizer = optimizer,
       .zero = stage == 3 ? R"(, "stage3_param_persistence_threshold": 0)" : "",
       .more =
           fmt::format(R"(, "expert_parallel_size": {})", expert_size) + more,
       .clipping = "0.5"});
}

struct ExpertRun {
  std::vector<float> losses;  // of rank 0
  std::vector<double> norms;
  std::map<std::string, at::Tensor> params;  // fp32, of all experts
};

struct RunOptions {
  int num_ranks = 4;
  int expert_size = 1;
  int num_steps = 4;
  int top_k = 2;
  std::int64_t accumulation = 1;
};

ExpertRun train_experts(const Config& config, const RunOptions& options) {
  ExpertRun run;
  std::mutex mutex;
  on_ranks(options.num_ranks, config, [&](World& world, Mesh& mesh) {
    auto net = mixture_net(mesh, options.expert_size, options.top_k);
    Engine engine(net, mesh, config);
    for (int step = 0; step < options.num_steps; ++step) {
      at::Tensor loss;
      StepReport report;
      for (std::int64_t micro = 0; micro < options.accumulation; ++micro) {
        loss = net->loss((step * options.accumulation + micro) *
                             options.num_ranks +
                         world.rank());
        report = train_step(engine, loss);
      }
      if (world.rank() != 0) continue;
      run.losses.push_back(loss.item<float>());
      run.norms.push_back(report.grad_norm);
    }
    for (const auto& item : net->named_parameters()) {
      const auto value = safe_get_full_fp32_param(engine, item.value());
      const std::lock_guard lock(mutex);
      run.params[item.key()] = value;
    }
  });
  return run;
}

void expect_near_run(const ExpertRun& actual, const ExpertRun& expected,
                     double tolerance) {
  expect_near_curves(actual, expected, tolerance);
  ASSERT_EQ(actual.params.size(), expected.params.size());
  for (const auto& [name, value] : expected.params) {
    EXPECT_LE((actual.params.at(name) - value).norm().item<double>(),
              tolerance * value.norm().item<double>())
        << name;
  }
}

void expect_equal_run(const ExpertRun& actual, const ExpertRun& expected) {
  EXPECT_EQ(actual.losses, expected.losses);
  EXPECT_EQ(actual.norms, expected.norms);
  for (const auto& [name, value] : expected.params) {
    EXPECT_TRUE(same_bits(actual.params.at(name), value)) << name;
  }
}

class ExpertsStageTest : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Stages, ExpertsStageTest,
                         ::testing::Values(0, 1, 2, 3));

TEST_P(ExpertsStageTest, FiftyStepsOfExpertSizeNAreThoseOfExpertSizeOne) {
  for (const int top_k : {1, 2}) {
    // Routing has nothing to do with the stage.
    if (top_k == 1 && GetParam() != 3) continue;
    RunOptions options{.num_steps = 50, .top_k = top_k};
    const auto expected =
        train_experts(expert_config(GetParam(), 1, "", kSgd), options);
    EXPECT_LT(expected.losses.back(), expected.losses.front());
    for (const int expert_size : {2, 4}) {
      SCOPED_TRACE(expert_size);
      options.expert_size = expert_size;
      expect_near_run(
          train_experts(expert_config(GetParam(), expert_size, "", kSgd),
                        options),
          expected, 1e-4);
    }
  }
}

TEST_P(ExpertsStageTest, EveryWorldAndExpertSizeAgrees) {
  const std::pair<int, std::vector<int>> worlds[] = {
      {2, {2}}, {3, {3}}, {6, {2, 3, 6}}};
  for (const auto& [num_ranks, expert_sizes] : worlds) {
    RunOptions options{.num_ranks = num_ranks};
    const auto expected = train_experts(expert_config(GetParam(), 1), options);
    for (const int expert_size : expert_sizes) {
      SCOPED_TRACE(::testing::Message()
                   << num_ranks << " ranks, expert size " << expert_size);
      options.expert_size = expert_size;
      expect_near_run(
          train_experts(expert_config(GetParam(), expert_size), options),
          expected, 1e-4);
    }
  }
}

TEST_P(ExpertsStageTest, NeighboursMayHoldTheSameExperts) {
  const std::string order = R"(, "use_data_before_expert_parallelism": true)";
  RunOptions options{};
  const auto expected = train_experts(expert_config(GetParam(), 1), options);
  options.expert_size = 2;
  expect_near_run(train_experts(expert_config(GetParam(), 2, order), options),
                  expected, 1e-4);
}

TEST_P(ExpertsStageTest, GradientsAccumulateOverMicroSteps) {
  const std::string more = R"(, "gradient_accumulation_steps": 3)";
  RunOptions options{.num_steps = 2, .accumulation = 3};
  const auto expected =
      train_experts(expert_config(GetParam(), 1, more), options);
  options.expert_size = 2;
  expect_near_run(train_experts(expert_config(GetParam(), 2, more), options),
                  expected, 1e-4);
}

// The gradient of an expert is the sum over its expert data group, divided by
// all ranks; the norm counts every expert once.
TEST_P(ExpertsStageTest, GradientsAndNormAreThoseOfTheUnshardedModel) {
  std::map<std::string, at::Tensor> expected;
  MixtureNet alone(nullptr, 2);
  fill_by_name(*alone);
  for (int rank = 0; rank < 4; ++rank) (alone->loss(rank) / 4).backward();
  double squares = 0;
  for (const auto& item : alone->named_parameters()) {
    expected[item.key()] = item.value().grad();
    squares +=
        item.value().grad().to(at::kDouble).square().sum().item<double>();
  }
  for (const int expert_size : {1, 2, 4}) {
    const auto config = expert_config(GetParam(), expert_size);
    on_ranks(4, config, [&](World& world, Mesh& mesh) {
      auto net = mixture_net(mesh, expert_size, 2);
      Engine engine(net, mesh, config);
      engine.backward(net->loss(world.rank()));
      for (const auto& item : net->named_parameters()) {
        const auto grad = safe_get_full_grad(engine, item.value());
        const auto& reference = expected.at(item.key());
        EXPECT_LE((grad - reference).norm().item<double>(),
                  1e-5 * reference.norm().item<double>() + 1e-7)
            << item.key();
      }
      const auto report = engine.step();
      EXPECT_NEAR(report.grad_norm, std::sqrt(squares),
                  1e-5 * std::sqrt(squares));
      EXPECT_NEAR(report.clipped_grad_norm, 0.5, 1e-4);
    });
  }
}

TEST_P(ExpertsStageTest, ANumberThatIsNotFiniteSkipsTheStepOnAllRanks) {
  const auto config = expert_config(GetParam(), 2);
  on_ranks(4, config, [&](World& world, Mesh& mesh) {
    auto net = mixture_net(mesh, 2, 1);
    Engine engine(net, mesh, config);
    std::vector<at::Tensor> before;
    for (const auto& param : net->parameters()) {
      before.push_back(safe_get_full_fp32_param(engine, param));
    }
    // Of rank 3's experts alone. The others use theirs too: at stage 3 ranks
    // gather in one order.
    const auto params = net->named_parameters();
    const auto name = fmt::format("mixture.experts.{}.0.weight",
                                  world.rank() % 2 * kNumExperts / 2);
    const auto loss = net->loss(world.rank()) +
                      params[name].sum() * (world.rank() == 3 ? INFINITY : 0);
    const auto report = train_step(engine, loss);
    EXPECT_TRUE(report.is_skipped);
    EXPECT_THAT(report.non_finite, HasSubstr("mixture.experts.6.0.weight"));
    std::size_t i = 0;
    for (const auto& param : net->parameters()) {
      EXPECT_TRUE(
          same_bits(safe_get_full_fp32_param(engine, param), before[i++]));
    }
    EXPECT_FALSE(train_step(engine, net->loss(world.rank())).is_skipped);
  });
}

TEST_P(ExpertsStageTest, ARankWithoutTokensTakesPart) {
  const auto config = expert_config(GetParam(), 2);
  on_ranks(4, config, [&](World& world, Mesh& mesh) {
    auto net = mixture_net(mesh, 2, 2);
    Engine engine(net, mesh, config);
    for (int step = 0; step < 4; ++step) {
      const std::int64_t num_tokens = (world.rank() + step) % 4;
      const auto report =
          train_step(engine, net->loss(world.rank(), num_tokens));
      EXPECT_FALSE(report.is_skipped);
    }
  });
}

TEST(ExpertsTest, AllStagesGiveTheSameBits) {
  for (const int expert_size : {2, 4}) {
    RunOptions options{.expert_size = expert_size};
    const auto expected = train_experts(expert_config(0, expert_size), options);
    for (const int stage : {1, 2, 3}) {
      SCOPED_TRACE(stage);
      expect_equal_run(
          train_experts(expert_config(stage, expert_size), options), expected);
    }
  }
}

// Experts are held by fewer ranks the larger the expert size is; their state
// is shared out among those.
TEST(ExpertsTest, StateOfAnExpertIsSharedOutAmongItsHolders) {
  const auto params_bytes_at = [](int stage, int expert_size) {
    std::int64_t bytes = 0;
    const auto config = expert_config(stage, expert_size);
    on_ranks(4, config, [&](World& world, Mesh& mesh) {
      auto net = mixture_net(mesh, expert_size, 1);
      Engine engine(net, mesh, config);
      train_step(engine, net->loss(world.rank()));
      if (world.rank() == 0) bytes = engine.memory().params_bytes;
    });
    return static_cast<double>(bytes);
  };
  const double experts_bytes =
      kNumExperts * (2.0 * 2 * kWidth * kWidth + 3 * kWidth) * 4;
  EXPECT_NEAR(params_bytes_at(1, 1) - params_bytes_at(1, 4),
              experts_bytes * 3 / 4, 0.05 * experts_bytes);
  EXPECT_NEAR(params_bytes_at(3, 1), params_bytes_at(3, 4),
              0.1 * experts_bytes);
}

TEST(ExpertsTest, InitGivesTheExpertsOfTheSameSeed) {
  torch::manual_seed(8);
  MixtureNet expected(nullptr, 1);
  const auto values = expected->named_parameters();
  for (const int expert_size : {1, 2, 4}) {
    const auto config = expert_config(3, expert_size);
    on_ranks(4, config, [&](World&, Mesh& mesh) {
      auto net = init(mesh, config, [&] {
        torch::manual_seed(8);
        return MixtureNet(expert_group(mesh, expert_size), 1);
      });
      Engine engine(net, mesh, config);
      for (const auto& item : net->named_parameters()) {
        EXPECT_TRUE(same_bits(safe_get_full_fp32_param(engine, item.value()),
                              values[item.key()].detach()))
            << item.key() << " at expert size " << expert_size;
      }
    });
  }
}

TEST(ExpertsTest, ScopesGatherLocalExperts) {
  const auto config = expert_config(3, 2);
  on_ranks(4, config, [&](World&, Mesh& mesh) {
    auto net = mixture_net(mesh, 2, 1);
    std::map<std::string, at::Tensor> before;
    for (const auto& item : net->named_parameters()) {
      before[item.key()] = item.value().detach().clone();
    }
    Engine engine(net, mesh, config);
    const GatheredParameters scope(net->parameters());
    for (const auto& item : net->named_parameters()) {
      EXPECT_TRUE(same_bits(item.value(), before[item.key()])) << item.key();
    }
  });
}

TEST(ExpertsTest, InBf16ItTrains) {
  RunOptions options{.expert_size = 2, .num_steps = 20};
  const auto config = expert_config(3, 2, kBf16, kSgd);
  const auto run = train_experts(config, options);
  EXPECT_LT(run.losses.back(), run.losses.front());
}

TEST(ExpertsTest, OneProcessWouldHoldThoseOfAllRanks) {
  const auto params_bytes = [](int expert_size) {
    std::int64_t bytes = 0;
    const auto config = expert_config(3, expert_size);
    on_ranks(2, config, [&](World& world, Mesh& mesh) {
      auto net = mixture_net(mesh, expert_size, /*top_k=*/1);
      Engine engine(net, mesh, config);
      if (world.rank() == 0) bytes = engine.unsharded_memory().params_bytes;
    });
    return bytes;
  };
  EXPECT_EQ(params_bytes(2), params_bytes(1));
}

// Rank 1 leaves the mixture out in its second step: rank 0 waits for it among
// the experts, and it for rank 0 where parameters are gathered.
TEST(ExpertsTest,
     ARankThatTakesAnotherBranchIsAnErrorOnBothThatNamesStepAndUnit) {
  const auto config = expert_config(3, 2);
  auto options = kOverGloo;
  options.timeout = std::chrono::minutes(5);
  options.stall_check = std::chrono::milliseconds(300);
  const auto start = std::chrono::steady_clock::now();
  on_ranks(
      2, config,
      [&](World& world, Mesh& mesh) {
        auto net = mixture_net(mesh, 2, /*top_k=*/1);
        Engine engine(net, mesh, config);
        train_step(engine, net->loss(world.rank()));
        const auto text = error_of([&] {
          if (world.rank() == 0) {
            train_step(engine, net->loss(1));
          } else {
            const auto x = net->first(torch::ones({16, kWidth}));
            train_step(engine, net->head(x).square().sum());
          }
        });
        EXPECT_THAT(text, AllOf(HasSubstr("ranks wait for each other"),
                                HasSubstr("rank 0 has waited"),
                                HasSubstr("in group 'expert_2'"),
                                HasSubstr("(step 2, micro step 0)"),
                                HasSubstr("rank 1 has waited"),
                                HasSubstr("in group 'data_parallel'"),
                                HasSubstr("(step 2, micro step 0, gradient "
                                          "bucket 6 of first.weight")));
      },
      options);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
}

}  // namespace
}  // namespace nfold::testing
