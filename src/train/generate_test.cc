#include "train/generate.h"

#include <ATen/Functions.h>
#include <gtest/gtest.h>

#include "nfold/errors.h"

namespace nfold::train {
namespace {

ModelConfig tiny_config() {
  ModelConfig config;
  config.vocab_size = 40;
  config.num_layers = 1;
  config.hidden_size = 16;
  config.num_heads = config.num_kv_heads = 2;
  config.head_dim = 8;
  config.intermediate_size = 32;
  config.max_positions = 8;
  return config;
}

class GenerateTest : public testing::Test {
 protected:
  GenerateTest() {
    at::manual_seed(1);
    model_ = make_model(tiny_config());
    // Wide logits, so that the draws are not all but uniform.
    for (auto& param : model_->parameters()) param.set_data(param * 8);
  }
  std::vector<TokenId> run(GenerateOptions options, TokenId end_token = -1) {
    options.max_positions = 8;
    return generate_tokens(*model_, {3, 1, 4}, options, end_token);
  }

  std::shared_ptr<CausalLm> model_;
};

TEST_F(GenerateTest, SameSeedSameTokens) {
  const GenerateOptions options{.max_tokens = 20, .seed = 7};
  EXPECT_EQ(run(options).size(), 20u);
  EXPECT_EQ(run(options), run(options));
  EXPECT_NE(run(options), run({.max_tokens = 20, .seed = 8}));
}

TEST_F(GenerateTest, NoTemperatureIsTheLikeliestToken) {
  const auto greedy = run({.max_tokens = 12, .temperature = 0});
  EXPECT_EQ(greedy, run({.max_tokens = 12, .temperature = 3, .top_k = 1}));
  at::NoGradGuard no_grad;
  const auto logits =
      model_->forward(at::tensor({3, 1, 4}, at::kLong).view({1, 3}));
  EXPECT_EQ(greedy[0], logits[0][2].argmax().item<std::int64_t>());
}

TEST_F(GenerateTest, DrawsNoTokenThatTheTokenizerLacks) {
  for (std::uint64_t seed = 0; seed < 8; ++seed) {
    for (const TokenId token : run({.max_tokens = 20,
                                    .temperature = 5,
                                    .top_k = 0,
                                    .seed = seed,
                                    .num_tokens = 5})) {
      EXPECT_LT(token, 5);
    }
  }
}

TEST_F(GenerateTest, DrawsOnlyFromTheLikeliest) {
  at::NoGradGuard no_grad;
  const auto logits =
      model_->forward(at::tensor({3, 1, 4}, at::kLong).view({1, 3}));
  const auto likeliest = std::get<1>(logits[0][2].topk(3));
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    const auto token =
        run({.max_tokens = 1, .temperature = 5, .top_k = 3, .seed = seed})[0];
    EXPECT_TRUE(likeliest.eq(token).any().item<bool>()) << token;
  }
}

TEST_F(GenerateTest, EndTokenEndsAndIsLeftOut) {
  const auto whole = run({.max_tokens = 20, .seed = 7});
  const auto end_token = whole[5];
  const auto cut = run({.max_tokens = 20, .seed = 7}, end_token);
  EXPECT_LE(cut.size(), 5u);
  EXPECT_TRUE(std::equal(cut.begin(), cut.end(), whole.begin()));
}

TEST_F(GenerateTest, TrainingStaysAsItWas) {
  at::manual_seed(5);
  const auto expected = at::rand({3});
  at::manual_seed(5);
  run({.max_tokens = 5});
  EXPECT_TRUE(at::equal(at::rand({3}), expected));
  EXPECT_TRUE(model_->is_training());
}

TEST_F(GenerateTest, BadOptionsAreErrors) {
  EXPECT_THROW(run({.max_tokens = -1}), c10::ValueError);
  EXPECT_THROW(run({.temperature = -1}), c10::ValueError);
  EXPECT_THROW(run({.top_k = -1}), c10::ValueError);
  EXPECT_THROW(generate_tokens(*model_, {}, {.max_positions = 8}),
               c10::ValueError);
}

}  // namespace
}  // namespace nfold::train
