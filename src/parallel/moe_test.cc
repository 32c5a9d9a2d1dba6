#include "nfold/moe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <map>
#include <mutex>

#include "nfold/activation_checkpoint.h"
#include "nfold/collectives.h"
#include "nfold/expert_ranks.h"
#include "testing/raised_text.h"
#include "testing/thread_world.h"

namespace nfold {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr std::int64_t kHidden = 6;

at::Tensor wave(at::IntArrayRef sizes, double phase) {
  return (torch::arange(c10::multiply_integers(sizes)) * 0.917 + phase)
      .sin()
      .view(sizes);
}

struct MlpImpl : torch::nn::Module {
  MlpImpl() {
    fc1 = register_module("fc1", torch::nn::Linear(kHidden, 2 * kHidden));
    fc2 = register_module("fc2", torch::nn::Linear(2 * kHidden, kHidden));
  }
  at::Tensor forward(const at::Tensor& x) { return fc2(torch::tanh(fc1(x))); }

  torch::nn::Linear fc1{nullptr};
  torch::nn::Linear fc2{nullptr};
};
TORCH_MODULE(Mlp);

// The parameters are a function of their names, whoever holds them: ranks as
// threads share the random generator.
MixtureOfExperts mixture_of(const MixtureOptions& options) {
  MixtureOfExperts mixture(options, [] { return Mlp(); });
  torch::NoGradGuard no_grad;
  for (auto& param : mixture->named_parameters()) {
    const auto phase =
        static_cast<double>(std::hash<std::string>{}(param.key()) % 1000);
    param.value().copy_(wave(param.value().sizes(), phase));
  }
  return mixture;
}

// The expert group of this rank, and its place in the lists.
std::unique_ptr<Group> expert_group_of(const World& world, int expert_size) {
  std::unique_ptr<Group> mine;
  for (const auto& ranks :
       expert_rank_lists(world.size(), {.expert = expert_size}).expert) {
    if (auto group = world.new_group("expert", ranks)) mine = std::move(group);
  }
  return mine;
}

// What one rank computed with its tokens.
struct Outcome {
  at::Tensor output;
  at::Tensor aux_loss;
  at::Tensor counts;
  std::int64_t num_dropped = 0;
  std::map<std::string, at::Tensor> grads{};  // "x" is that of the tokens
};

using Layer = std::function<MixtureOutput(const at::Tensor&)>;

Outcome outcome_of(MixtureOfExperts& mixture, const at::Tensor& tokens,
                   const Layer& layer) {
  const auto x = tokens.clone().requires_grad_();
  const auto made = layer(x);
  const auto loss =
      (made.output * wave(made.output.sizes(), 0.5)).sum() + made.aux_loss;
  loss.backward();
  Outcome outcome{.output = made.output.detach(),
                  .aux_loss = made.aux_loss.detach(),
                  .counts = made.counts,
                  .num_dropped = made.num_dropped};
  outcome.grads["x"] = x.grad();
  for (auto& param : mixture->named_parameters()) {
    EXPECT_TRUE(param.value().grad().defined()) << param.key();
    outcome.grads[param.key()] = param.value().grad();
  }
  return outcome;
}

Outcome outcome_of(MixtureOfExperts& mixture, const at::Tensor& tokens) {
  return outcome_of(mixture, tokens,
                    [&](const at::Tensor& x) { return mixture->forward(x); });
}

void expect_equal_up_to_rounding(const at::Tensor& actual,
                                 const at::Tensor& expected,
                                 const std::string& what) {
  ASSERT_EQ(actual.sizes(), expected.sizes()) << what;
  EXPECT_TRUE(torch::allclose(actual, expected, 1e-4, 1e-5))
      << what << "\n"
      << actual << "\nexpected\n"
      << expected;
}

// Trains one pass with the experts shared out, and compares with ranks that
// hold all experts: the same outputs, and the same gradients once those of
// the ranks that hold a parameter are summed.
void expect_same_as_alone(int num_ranks, int expert_size,
                          const MixtureOptions& options,
                          const std::vector<at::Tensor>& tokens) {
  SCOPED_TRACE(::testing::Message()
               << num_ranks << " ranks, expert size " << expert_size << ", top "
               << options.top_k);
  std::vector<Outcome> outcomes(static_cast<std::size_t>(num_ranks));
  run_ranks(num_ranks, [&](World& world) {
    at::set_num_threads(1);
    const auto group = expert_group_of(world, expert_size);
    auto shared = options;
    shared.expert_group = group.get();
    auto mixture = mixture_of(shared);
    const auto rank = static_cast<std::size_t>(world.rank());
    outcomes[rank] = outcome_of(mixture, tokens[rank]);
  });
  std::map<std::string, at::Tensor> sums;
  for (auto& outcome : outcomes) {
    for (const auto& [name, grad] : outcome.grads) {
      if (name == "x") continue;
      sums[name] = sums.contains(name) ? sums[name] + grad : grad;
    }
  }
  std::map<std::string, at::Tensor> expected_sums;
  for (std::size_t rank = 0; rank < outcomes.size(); ++rank) {
    auto alone = mixture_of(options);
    const auto expected = outcome_of(alone, tokens[rank]);
    const auto& actual = outcomes[rank];
    expect_equal_up_to_rounding(actual.output, expected.output, "output");
    expect_equal_up_to_rounding(actual.aux_loss, expected.aux_loss, "aux");
    EXPECT_TRUE(torch::equal(actual.counts, expected.counts));
    EXPECT_EQ(actual.num_dropped, expected.num_dropped);
    for (const auto& [name, grad] : expected.grads) {
      if (name == "x") {
        expect_equal_up_to_rounding(actual.grads.at(name), grad, name);
      } else {
        auto& sum = expected_sums[name];
        sum = sum.defined() ? sum + grad : grad;
      }
    }
  }
  ASSERT_EQ(sums.size(), expected_sums.size());
  for (const auto& [name, sum] : expected_sums) {
    expect_equal_up_to_rounding(sums.at(name), sum, name);
  }
}

std::vector<at::Tensor> tokens_of(const std::vector<std::int64_t>& numbers) {
  std::vector<at::Tensor> tokens;
  for (const auto number : numbers) {
    tokens.push_back(
        wave({number, kHidden}, static_cast<double>(tokens.size()) * 1.7));
  }
  return tokens;
}

MixtureOptions options_of(int top_k, std::int64_t num_experts = 12) {
  return {.hidden_size = kHidden,
          .num_experts = num_experts,
          .top_k = top_k,
          .min_capacity = 1};
}

class MixtureTopTest : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Top, MixtureTopTest, ::testing::Values(1, 2));

// The formula with nothing sorted, sent or dropped.
TEST_P(MixtureTopTest, OutputIsTheWeightedSumOfTheChosenExperts) {
  auto options = options_of(GetParam(), 4);
  options.drop_tokens = false;
  auto mixture = mixture_of(options);
  const auto x = wave({3, 5, kHidden}, 0.3);
  const auto output = mixture->forward(x).output;
  ASSERT_EQ(output.sizes(), x.sizes());
  const auto params = mixture->named_parameters();
  const auto gates =
      at::linear(x.view({-1, kHidden}), params["gate.weight"]).softmax(-1);
  const auto children = mixture->named_modules();
  for (std::int64_t token = 0; token < 15; ++token) {
    const auto [weight, index] = gates[token].topk(GetParam());
    auto expected = torch::zeros({kHidden});
    for (int i = 0; i < GetParam(); ++i) {
      auto expert = std::dynamic_pointer_cast<MlpImpl>(
          children["experts." + std::to_string(index[i].item<int>())]);
      const auto share = GetParam() == 1 ? weight[i] : weight[i] / weight.sum();
      expected += share * expert->forward(x.view({-1, kHidden})[token]);
    }
    expect_equal_up_to_rounding(output.view({-1, kHidden})[token], expected,
                                "token " + std::to_string(token));
  }
}

TEST_P(MixtureTopTest, ExpertSizeNEqualsExpertSizeOne) {
  const std::pair<int, std::vector<int>> worlds[] = {
      {1, {1}}, {2, {1, 2}}, {3, {3}}, {4, {2, 4}}, {6, {2, 3, 6}}};
  for (const auto& [num_ranks, expert_sizes] : worlds) {
    const auto tokens = tokens_of(
        std::vector<std::int64_t>(static_cast<std::size_t>(num_ranks), 40));
    for (const int expert_size : expert_sizes) {
      expect_same_as_alone(num_ranks, expert_size, options_of(GetParam()),
                           tokens);
    }
  }
}

TEST_P(MixtureTopTest, RanksMayHaveDifferentNumbersOfTokensAndNone) {
  expect_same_as_alone(4, 4, options_of(GetParam(), 4),
                       tokens_of({0, 1, 2, 7}));
  expect_same_as_alone(4, 2, options_of(GetParam(), 4),
                       tokens_of({8, 1023, 0, 0}));
}

TEST_P(MixtureTopTest, WithoutDroppingTheRoomIsThatOfTheFullestRank) {
  auto options = options_of(GetParam(), 4);
  options.drop_tokens = false;
  expect_same_as_alone(2, 2, options, tokens_of({31, 8}));
}

TEST_P(MixtureTopTest, AllTokensOfARankMayChooseOneExpert) {
  auto tokens = tokens_of({16, 16, 16, 16});
  tokens[1] = wave({1, kHidden}, 2).repeat({16, 1});
  auto options = options_of(GetParam(), 4);
  expect_same_as_alone(4, 4, options, tokens);
  options.drop_tokens = false;
  expect_same_as_alone(4, 4, options, tokens);
  options.capacity_factor = 0.01;
  options.drop_tokens = true;
  expect_same_as_alone(4, 2, options, tokens);
}

TEST_P(MixtureTopTest, WithAResidualItIsTheSameAsAlone) {
  auto options = options_of(GetParam(), 4);
  options.has_residual = true;
  auto mixture = mixture_of(options);
  const auto names = mixture->named_parameters();
  EXPECT_TRUE(names.contains("mlp.fc1.weight"));
  EXPECT_TRUE(names.contains("coefficient.weight"));
  expect_same_as_alone(2, 2, options, tokens_of({16, 5}));
}

TEST_P(MixtureTopTest, UnderActivationCheckpointingGradientsKeepTheirBits) {
  std::vector<std::map<std::string, at::Tensor>> grads[2];
  for (const bool is_checkpointed : {false, true}) {
    auto& of_ranks = grads[is_checkpointed];
    of_ranks.resize(2);
    run_ranks(2, [&](World& world) {
      at::set_num_threads(1);
      auto options = options_of(GetParam(), 4);
      options.expert_group = &world.group();
      auto mixture = mixture_of(options);
      const auto outcome = outcome_of(
          mixture, wave({9, kHidden}, world.rank()), [&](const at::Tensor& x) {
            if (!is_checkpointed) return mixture->forward(x);
            const auto made = checkpoint(
                [&](const std::vector<at::Tensor>& inputs) {
                  const auto again = mixture->forward(inputs[0]);
                  return std::vector{again.output, again.aux_loss};
                },
                {x});
            return MixtureOutput{.output = made[0], .aux_loss = made[1]};
          });
      of_ranks[static_cast<std::size_t>(world.rank())] = outcome.grads;
    });
  }
  for (std::size_t rank = 0; rank < 2; ++rank) {
    for (const auto& [name, grad] : grads[0][rank]) {
      EXPECT_TRUE(torch::equal(grad, grads[1][rank].at(name))) << name;
    }
  }
}

TEST(MixtureTest, RanksHoldTheirExpertsUnderGlobalNames) {
  run_ranks(4, [](World& world) {
    const auto group = expert_group_of(world, 2);
    auto options = options_of(1, 4);
    options.expert_group = group.get();
    MixtureOfExperts mixture(options, [] { return Mlp(); });
    std::vector<std::string> names;
    for (const auto& param : mixture->named_parameters()) {
      names.push_back(param.key());
    }
    const std::string first = world.rank() % 2 == 0 ? "0" : "2";
    const std::string second = world.rank() % 2 == 0 ? "1" : "3";
    EXPECT_EQ(names[0], "gate.weight");
    EXPECT_EQ(names[1], "experts." + first + ".fc1.weight");
    EXPECT_EQ(names[5], "experts." + second + ".fc1.weight");
    EXPECT_EQ(names.size(), 9U);
    EXPECT_EQ(mixture->placement_of(names[0]), Placement());
    EXPECT_EQ(mixture->placement_of(names[1]), (Placement{.expert_size = 2}));
  });
  MixtureOfExperts alone(options_of(1, 4), [] { return Mlp(); });
  EXPECT_EQ(alone->placement_of("experts.0.fc1.weight"), Placement());
}

TEST(MixtureTest, InitialValuesDoNotDependOnTheGroup) {
  torch::manual_seed(6);
  auto options = options_of(1, 4);
  options.has_residual = true;
  MixtureOfExperts alone(options, [] { return Mlp(); });
  const auto expected = alone->named_parameters();
  std::mutex mutex;  // one rank at a time draws from the generator
  std::size_t num_found = 0;
  run_ranks(4, [&](World& world) {
    auto shared = options;
    shared.expert_group = &world.group();
    const std::lock_guard lock(mutex);
    torch::manual_seed(6);
    MixtureOfExperts mixture(shared, [] { return Mlp(); });
    for (const auto& param : mixture->named_parameters()) {
      EXPECT_TRUE(torch::equal(param.value(), expected[param.key()]))
          << param.key();
      num_found += param.key().starts_with("experts.");
    }
  });
  EXPECT_EQ(num_found, 4U * 4U);
}

// What travels is [experts, rows, hidden], there and back, forward and
// backward; rows are what the fullest expert needs, below its capacity.
TEST(MixtureTest, TwoAllToAllsForwardAndTwoBackward) {
  run_ranks(2, [](World& world) {
    at::set_num_threads(1);
    auto options = options_of(1, 4);
    options.expert_group = &world.group();
    options.capacity_factor = 4;
    auto mixture = mixture_of(options);
    const auto outcome = outcome_of(mixture, wave({32, kHidden}, world.rank()));
    auto rows = outcome.counts.max().view({1}).clone();
    const auto counts = world.group().counts();
    all_reduce(world.group(), rows, ReduceOp::kMax).wait();
    EXPECT_LT(rows.item<std::int64_t>(), 32);
    const auto& sent = counts[static_cast<int>(Collective::kAllToAll)];
    EXPECT_EQ(sent.calls, 4);
    EXPECT_EQ(sent.bytes,
              4 * (4 * rows.item<std::int64_t>() * kHidden * 4) / 2);
    EXPECT_EQ(counts[static_cast<int>(Collective::kAllReduce)].calls, 1);
  });
}

TEST(MixtureTest, LowPrecisionIsKeptAndTheGateWorksInFp32) {
  auto mixture = mixture_of(options_of(2, 4));
  const auto x = wave({16, kHidden}, 0.1);
  const auto expected = mixture->forward(x);
  mixture->to(at::kBFloat16);
  const auto actual = mixture->forward(x.to(at::kBFloat16));
  EXPECT_EQ(actual.output.scalar_type(), at::kBFloat16);
  EXPECT_EQ(actual.aux_loss.scalar_type(), at::kFloat);
  EXPECT_TRUE(
      torch::allclose(actual.output.to(at::kFloat), expected.output, 0.1, 0.1));
}

TEST(MixtureTest, NoiseAndCapacityOfTrainingEndWithTraining) {
  auto options = options_of(1, 4);
  options.noisy_gate = NoisyGate::kRSample;
  options.capacity_factor = 0.01;
  options.eval_capacity_factor = 4;
  auto mixture = mixture_of(options);
  auto plain = mixture_of(options_of(1, 4));
  const auto x = wave({64, kHidden}, 0.1);
  torch::manual_seed(1);
  const auto trained = mixture->forward(x);
  EXPECT_EQ(trained.num_dropped, 60);  // one for each expert stays
  EXPECT_FALSE(torch::equal(trained.counts, plain->forward(x).counts));
  mixture->eval();
  const auto evaluated = mixture->forward(x);
  EXPECT_EQ(evaluated.num_dropped, 0);
  EXPECT_TRUE(torch::equal(evaluated.counts, plain->forward(x).counts));
}

TEST(MixtureTest, JitterMovesTheGateOnly) {
  auto options = options_of(1, 4);
  options.drop_tokens = false;
  auto plain = mixture_of(options);
  options.noisy_gate = NoisyGate::kJitter;
  options.jitter = 1e-3;
  auto mixture = mixture_of(options);
  const auto x = wave({4, kHidden}, 0.1);
  torch::manual_seed(1);
  const auto moved = mixture->forward(x).output;
  const auto expected = plain->forward(x).output;
  EXPECT_FALSE(torch::equal(moved, expected));
  EXPECT_TRUE(torch::allclose(moved, expected, 0, 1e-2));
  mixture->eval();
  EXPECT_TRUE(torch::equal(mixture->forward(x).output, expected));
}

TEST(MixtureTest, ASequentialMayBeAnExpert) {
  MixtureOfExperts mixture(options_of(1, 2), [] {
    return torch::nn::Sequential(torch::nn::Linear(kHidden, kHidden),
                                 torch::nn::GELU());
  });
  EXPECT_EQ(mixture->forward(torch::ones({2, kHidden})).output.sizes(),
            at::IntArrayRef({2, kHidden}));
}

TEST(MixtureTest, BadOptionsAreErrors) {
  const auto error = [](auto change) {
    auto options = options_of(1, 4);
    change(options);
    return text_of<c10::ValueError>([&] { mixture_of(options); });
  };
  EXPECT_THAT(error([](auto& o) { o.top_k = 3; }), HasSubstr("top_k"));
  EXPECT_THAT(error([](auto& o) { o.capacity_factor = 0; }),
              HasSubstr("capacity_factor"));
  EXPECT_THAT(error([](auto& o) { o.eval_capacity_factor = -1; }),
              HasSubstr("capacity_factor"));
  EXPECT_THAT(error([](auto& o) { o.hidden_size = 0; }),
              HasSubstr("hidden_size"));
  EXPECT_THAT(error([](auto& o) { o.num_experts = 0; }),
              HasSubstr("num_experts"));
  EXPECT_THAT(error([](auto& o) {
                o.top_k = 2;
                o.num_experts = 1;
              }),
              AllOf(HasSubstr("top_k, which is 2"), HasSubstr("found 1")));
  EXPECT_THAT(error([](auto& o) { o.jitter = 1; }), HasSubstr("jitter"));
  EXPECT_THAT(error([](auto& o) {
                o.top_k = 2;
                o.noisy_gate = NoisyGate::kRSample;
              }),
              HasSubstr("is_second_sampled"));
  run_ranks(4, [](World& world) {
    auto options = options_of(1, 6);
    options.expert_group = &world.group();
    EXPECT_THAT(text_of<c10::ValueError>([&] { mixture_of(options); }),
                AllOf(HasSubstr("6 experts"), HasSubstr("4 ranks"),
                      HasSubstr("'world'")));
  });
}

TEST(MixtureTest, BadInputIsAnError) {
  auto mixture = mixture_of(options_of(1, 4));
  const auto error = [&](const at::Tensor& x) {
    return text_of<c10::ValueError>([&] { mixture->forward(x); });
  };
  EXPECT_THAT(error(torch::zeros({3, 5})),
              AllOf(HasSubstr("[..., 6]"), HasSubstr("[3, 5]")));
  EXPECT_THAT(error(torch::zeros({3, 6}, at::kLong)),
              HasSubstr("floating-point"));
  EXPECT_THAT(error(torch::zeros({})), HasSubstr("hidden_size"));
  MixtureOfExperts widening(
      options_of(1, 2), [] { return torch::nn::Linear(kHidden, kHidden + 1); });
  EXPECT_THAT(text_of<c10::ValueError>(
                  [&] { widening->forward(torch::zeros({2, kHidden})); }),
              HasSubstr("must keep shape"));
}

}  // namespace
}  // namespace nfold
