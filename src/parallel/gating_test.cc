#include "parallel/gating.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <limits>

#include "testing/raised_text.h"

namespace nfold {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

// The formulation of GShard and DeepSpeed-MoE with masks and one-hot tensors:
// [tokens, experts, capacity] says who goes where with what weight.
struct DenseRouting {
  at::Tensor combine;
  at::Tensor aux_loss;
  at::Tensor counts;
};

at::Tensor dense_mask(const at::Tensor& scores) {
  return torch::one_hot(scores.argmax(1), scores.size(1)).to(at::kFloat);
}

at::Tensor dense_entries(const at::Tensor& gates, const at::Tensor& mask,
                         const at::Tensor& locations, std::int64_t capacity) {
  const auto kept = mask * locations.lt(capacity);
  const auto location = (locations * kept).sum(1).to(at::kLong);
  return torch::einsum(
      "se,sc->sec",
      {gates * kept, torch::one_hot(location, capacity).to(at::kFloat)});
}

DenseRouting dense_routing(const at::Tensor& logits, int top_k,
                           std::int64_t capacity) {
  const auto gates = logits.softmax(1);
  const auto num_experts = static_cast<double>(logits.size(1));
  const auto mask1 = dense_mask(gates);
  DenseRouting routing;
  routing.aux_loss = (gates.mean(0) * mask1.mean(0)).sum() * num_experts;
  const auto locations1 = mask1.cumsum(0) - 1;
  if (top_k == 1) {
    routing.counts = mask1.sum(0);
    routing.combine = dense_entries(gates, mask1, locations1, capacity);
    return routing;
  }
  const auto mask2 = dense_mask(logits.masked_fill(
      mask1.to(at::kBool), -std::numeric_limits<float>::infinity()));
  const auto locations2 = mask2.cumsum(0) - 1 + mask1.sum(0);
  routing.counts = (mask1 + mask2).sum(0);
  const auto both = dense_entries(gates, mask1, locations1, capacity) +
                    dense_entries(gates, mask2, locations2, capacity);
  routing.combine =
      both /
      both.sum({1, 2}, true).clamp_min(std::numeric_limits<float>::epsilon());
  return routing;
}

at::Tensor dense_of(const Routing& routing, at::IntArrayRef sizes) {
  return torch::zeros(sizes).index_put(
      {routing.tokens, routing.experts, routing.positions}, routing.weights);
}

at::Tensor some_logits(std::int64_t num_tokens, std::int64_t num_experts) {
  return (torch::arange(num_tokens * num_experts) * 0.7391)
      .sin()
      .mul(3)
      .view({num_tokens, num_experts});
}

// Logits whose softmax are these numbers.
at::Tensor logits_of(const std::vector<std::vector<float>>& probabilities) {
  std::vector<at::Tensor> rows;
  for (const auto& row : probabilities) rows.push_back(torch::tensor(row));
  return torch::stack(rows).log();
}

std::vector<std::int64_t> numbers(const at::Tensor& tensor) {
  return {tensor.const_data_ptr<std::int64_t>(),
          tensor.const_data_ptr<std::int64_t>() + tensor.numel()};
}

void expect_close(const at::Tensor& actual, const at::Tensor& expected) {
  EXPECT_TRUE(torch::allclose(actual, expected, 1e-6, 1e-7))
      << actual << "\nexpected\n"
      << expected;
}

using Numbers = std::vector<std::int64_t>;

class GatingSizesTest
    : public ::testing::TestWithParam<std::tuple<int, int, int>> {};
INSTANTIATE_TEST_SUITE_P(
    Sizes, GatingSizesTest,
    ::testing::Combine(::testing::Values(1, 2),                // top_k
                       ::testing::Values(1, 2, 7, 8, 1023),    // tokens
                       ::testing::Values(1, 2, 3, 4, 6, 8)));  // experts

TEST_P(GatingSizesTest, AgreesWithTheDenseFormulation) {
  const auto [top_k, num_tokens, num_experts] = GetParam();
  if (top_k > num_experts) return;
  for (const double factor : {0.25, 1.0, 1.5}) {
    for (const bool drop_tokens : {true, false}) {
      const GatingOptions options{.top_k = top_k,
                                  .capacity_factor = factor,
                                  .min_capacity = 1,
                                  .drop_tokens = drop_tokens};
      const auto logits = some_logits(num_tokens, num_experts).requires_grad_();
      const auto routing = route_tokens(logits, options);
      const auto twin = logits.detach().clone().requires_grad_();
      const auto expected = dense_routing(
          twin, top_k,
          drop_tokens ? capacity_of(num_tokens, num_experts, options)
                      : num_tokens);
      const auto combine = dense_of(routing, expected.combine.sizes());
      expect_close(combine, expected.combine);
      expect_close(routing.aux_loss, expected.aux_loss);
      EXPECT_TRUE(torch::equal(routing.counts, expected.counts.to(at::kLong)));
      const auto kept = expected.combine.gt(0);
      EXPECT_EQ(routing.num_dropped,
                num_tokens * top_k - kept.sum().item<std::int64_t>());
      EXPECT_EQ(routing.max_load,
                kept.sum(2).sum(0).max().item<std::int64_t>());
      EXPECT_TRUE(drop_tokens || routing.num_dropped == 0);

      const auto upstream =
          some_logits(combine.numel(), 1).view(combine.sizes());
      ((combine * upstream).sum() + routing.aux_loss).backward();
      ((expected.combine * upstream).sum() + expected.aux_loss).backward();
      EXPECT_TRUE(torch::allclose(logits.grad(), twin.grad(), 1e-4, 1e-6));
    }
  }
}

TEST(GatingTest, TopOneByHand) {
  const auto routing = route_tokens(
      logits_of({{.7, .2, .1}, {.6, .3, .1}, {.1, .1, .8}, {.5, .4, .1}}),
      {.capacity_factor = 1.5, .min_capacity = 1});  // capacity 2
  // Tokens 0, 1 and 3 choose expert 0, where two fit.
  EXPECT_EQ(numbers(routing.tokens), Numbers({0, 1, 2}));
  EXPECT_EQ(numbers(routing.experts), Numbers({0, 0, 2}));
  EXPECT_EQ(numbers(routing.positions), Numbers({0, 1, 0}));
  expect_close(routing.weights, torch::tensor({.7f, .6f, .8f}));
  EXPECT_EQ(numbers(routing.counts), Numbers({3, 0, 1}));
  EXPECT_EQ(routing.num_dropped, 1);
  EXPECT_EQ(routing.max_load, 2);
  // 3 * (1.9/4 * 3/4 + 1.0/4 * 0 + 1.1/4 * 1/4)
  EXPECT_NEAR(routing.aux_loss.item<double>(), 1.275, 1e-6);
}

TEST(GatingTest, TopTwoByHand) {
  const auto routing = route_tokens(
      logits_of({{.6, .3, .1}, {.5, .4, .1}, {.2, .7, .1}, {.1, .2, .7}}),
      {.top_k = 2, .capacity_factor = .75, .min_capacity = 1});  // capacity 2
  // First choices 0 0 1 2, second choices 1 1 0 1. Expert 0 is full with its
  // first choices; expert 1 has room for one second choice.
  EXPECT_EQ(numbers(routing.tokens), Numbers({0, 1, 2, 3, 0}));
  EXPECT_EQ(numbers(routing.experts), Numbers({0, 0, 1, 2, 1}));
  EXPECT_EQ(numbers(routing.positions), Numbers({0, 1, 0, 0, 1}));
  // Where one choice is left it weighs all: tokens 1, 2 and 3.
  expect_close(routing.weights,
               torch::tensor({.6f / .9f, 1.f, 1.f, 1.f, .3f / .9f}));
  EXPECT_EQ(numbers(routing.counts), Numbers({3, 4, 1}));
  EXPECT_EQ(routing.num_dropped, 3);
  // 3 * (1.4/4 * 2/4 + 1.6/4 * 1/4 + 1.0/4 * 1/4)
  EXPECT_NEAR(routing.aux_loss.item<double>(), 1.0125, 1e-6);
}

TEST(GatingTest, TiesGoToTheLowerExpertAndTheEarlierToken) {
  const auto top1 = route_tokens(torch::zeros({5, 4}), {.min_capacity = 3});
  EXPECT_EQ(numbers(top1.experts), Numbers({0, 0, 0}));
  EXPECT_EQ(numbers(top1.tokens), Numbers({0, 1, 2}));
  const auto top2 =
      route_tokens(torch::zeros({3, 4}), {.top_k = 2, .min_capacity = 4});
  EXPECT_EQ(numbers(top2.experts), Numbers({0, 0, 0, 1, 1, 1}));
  expect_close(top2.weights, torch::full({6}, .5));
}

TEST(GatingTest, WithoutTokensNothingIsRouted) {
  for (const int top_k : {1, 2}) {
    for (const bool drop_tokens : {true, false}) {
      auto logits = torch::zeros({0, 4}).requires_grad_();
      const auto routing = route_tokens(logits, {.top_k = top_k,
                                                 .drop_tokens = drop_tokens,
                                                 .is_selection_random = true});
      EXPECT_EQ(routing.tokens.numel(), 0);
      EXPECT_EQ(routing.weights.numel(), 0);
      EXPECT_EQ(numbers(routing.counts), Numbers({0, 0, 0, 0}));
      EXPECT_EQ(routing.aux_loss.item<float>(), 0);
      EXPECT_EQ(routing.max_load, 0);
      (routing.weights.sum() + routing.aux_loss).backward();
      EXPECT_EQ(logits.grad().sizes(), logits.sizes());
    }
  }
}

TEST(GatingTest, CapacityIsAShareOfTheTokens) {
  const auto capacity = [](std::int64_t tokens, std::int64_t experts,
                           const GatingOptions& options) {
    return capacity_of(tokens, experts, options);
  };
  EXPECT_EQ(capacity(64, 4, {}), 16);
  EXPECT_EQ(capacity(64, 4, {.top_k = 2}), 32);
  EXPECT_EQ(capacity(65, 4, {}), 17);
  EXPECT_EQ(capacity(64, 4, {.capacity_factor = 1.25}), 20);
  EXPECT_EQ(capacity(8, 4, {}), 4);  // the least
  EXPECT_EQ(capacity(0, 4, {}), 4);
  EXPECT_EQ(capacity(0, 4, {.min_capacity = 0}), 0);
  // The product is a whole number, and no rounding adds to it.
  EXPECT_EQ(capacity(440, 4, {.capacity_factor = 1.1}), 121);
}

TEST(GatingTest, TheAuxiliaryLossIsOneWhenAllExpertsAreChosenAlike) {
  const auto even = (torch::eye(4) * 20).repeat({3, 1});
  EXPECT_NEAR(route_tokens(even, {}).aux_loss.item<double>(), 1, 1e-5);
  const auto uneven = torch::tensor({20.f, 0.f, 0.f, 0.f}).repeat({12, 1});
  EXPECT_NEAR(route_tokens(uneven, {}).aux_loss.item<double>(), 4, 1e-5);
}

TEST(GatingTest, NoiseDependsOnTheSeedAlone) {
  const GatingOptions noisy[] = {
      {.min_capacity = 1, .is_choice_sampled = true},
      {.min_capacity = 1, .is_selection_random = true},
      {.top_k = 2, .min_capacity = 1, .is_second_sampled = true}};
  for (const auto& options : noisy) {
    const auto logits = some_logits(200, 8) / 10;
    const auto drawn = [&](std::uint64_t seed) {
      torch::manual_seed(seed);
      const auto routing = route_tokens(logits, options);
      return torch::stack({routing.tokens, routing.experts});
    };
    const auto plain =
        route_tokens(logits, {.top_k = options.top_k, .min_capacity = 1});
    EXPECT_TRUE(torch::equal(drawn(1), drawn(1)));
    EXPECT_FALSE(torch::equal(drawn(1), drawn(2)));
    EXPECT_FALSE(
        torch::equal(drawn(1), torch::stack({plain.tokens, plain.experts})));
  }
}

TEST(GatingTest, ADrawnChoiceFollowsTheProbabilities) {
  torch::manual_seed(3);
  const auto logits = torch::tensor({.5f, .3f, .2f}).log().repeat({20000, 1});
  const auto drawn = [&](const GatingOptions& options) {
    return route_tokens(logits, options).counts.to(at::kFloat) / 20000;
  };
  EXPECT_TRUE(torch::allclose(drawn({.is_choice_sampled = true}),
                              torch::tensor({.5f, .3f, .2f}), 0, .02));
  // The first choice is always expert 0; of the others one is drawn.
  EXPECT_TRUE(torch::allclose(drawn({.top_k = 2, .is_second_sampled = true}),
                              torch::tensor({1.f, .6f, .4f}), 0, .02));
}

TEST(GatingTest, ALotGivesEveryTokenTheSameChance) {
  torch::manual_seed(4);
  auto taken = torch::zeros({8});
  for (int round = 0; round < 2000; ++round) {
    const auto routing = route_tokens(
        torch::zeros({8, 2}), {.min_capacity = 2, .is_selection_random = true});
    ASSERT_EQ(routing.tokens.numel(), 4);
    EXPECT_EQ(numbers(routing.positions), Numbers({0, 1, 2, 3}));
    taken.index_add_(0, routing.tokens, torch::ones({4}));
  }
  EXPECT_TRUE(torch::allclose(taken / 2000, torch::full({8}, .5), 0, .06));
}

TEST(GatingTest, LowPrecisionLogitsAreRoutedInFp32) {
  const auto routing =
      route_tokens(some_logits(8, 4).to(at::kBFloat16), {.top_k = 2});
  EXPECT_EQ(routing.weights.scalar_type(), at::kFloat);
  EXPECT_EQ(routing.aux_loss.scalar_type(), at::kFloat);
}

TEST(GatingTest, BadOptionsAreErrors) {
  const auto error = [](const at::Tensor& logits,
                        const GatingOptions& options) {
    return text_of<c10::ValueError>([&] { route_tokens(logits, options); });
  };
  const auto logits = torch::zeros({4, 3});
  EXPECT_THAT(error(logits, {.top_k = 3}),
              AllOf(HasSubstr("top_k"), HasSubstr("1 or 2"), HasSubstr("3")));
  EXPECT_THAT(error(logits, {.top_k = 0}), HasSubstr("found 0"));
  for (const double factor : {0.0, -1.0, double{NAN}, double{INFINITY}}) {
    EXPECT_THAT(error(logits, {.capacity_factor = factor}),
                HasSubstr("capacity_factor: expected a number above 0"));
  }
  EXPECT_THAT(error(logits, {.min_capacity = -1}), HasSubstr("min_capacity"));
  EXPECT_THAT(error(torch::zeros({4, 1}), {.top_k = 2}),
              AllOf(HasSubstr("top_k is 2"), HasSubstr("1 experts")));
  EXPECT_THAT(error(torch::zeros({4}), {}), HasSubstr("[tokens, experts]"));
  EXPECT_THAT(error(torch::zeros({4, 3}, at::kLong), {}),
              HasSubstr("floating-point"));
}

}  // namespace
}  // namespace nfold
