#include "train/models/gpt_mixture.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <map>
#include <mutex>

#include "nfold/collectives.h"
#include "testing/thread_world.h"
#include "train/models/causal_lm.h"

namespace nfold::train {
namespace {

ModelConfig mixture_config(std::int64_t experts_per_token = 1) {
  ModelConfig config;
  config.vocab_size = 61;
  config.num_layers = 3;
  config.hidden_size = 32;
  config.num_heads = config.num_kv_heads = 4;
  config.head_dim = 8;
  config.intermediate_size = 48;
  config.max_positions = 24;
  config.num_experts = 4;
  config.experts_per_token = experts_per_token;
  config.expert_capacity_factor = 0.5;  // some are dropped
  // So that gates are far from even.
  config.initializer_range = 0.5;
  return config;
}

std::shared_ptr<CausalLm> seeded_mixture(const ModelConfig& config,
                                         const ModelGroups& groups = {}) {
  // One rank at a time: as threads they share the generator.
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  at::manual_seed(5);
  return make_model(config, groups);
}

at::Tensor tokens_of_rank(int rank) {
  return (at::arange(32) * 7 + rank * 11 + at::arange(32).square())
      .remainder(61)
      .view({2, 16});
}

at::Tensor loss_of(CausalLm& model, int rank) {
  return model.loss(tokens_of_rank(rank), tokens_of_rank(rank).roll(1, 1));
}

TEST(GptMixtureTest, StandsInEverySecondBlock) {
  const auto params = seeded_mixture(mixture_config())->named_parameters();
  const std::pair<const char*, std::vector<std::int64_t>> expected[] = {
      {"transformer.h.0.mlp.c_fc.weight", {32, 48}},
      {"transformer.h.1.mlp.gate.weight", {4, 32}},
      {"transformer.h.1.mlp.experts.0.c_fc.weight", {32, 48}},
      {"transformer.h.1.mlp.experts.3.c_proj.bias", {32}},
      {"transformer.h.2.mlp.c_fc.weight", {32, 48}}};
  for (const auto& [name, shape] : expected) {
    ASSERT_TRUE(params.contains(name)) << name;
    EXPECT_EQ(params[name].sizes(), at::IntArrayRef(shape)) << name;
  }
  EXPECT_FALSE(params.contains("transformer.h.1.mlp.c_fc.weight"));
  auto everywhere = mixture_config();
  everywhere.decoder_sparse_step = 1;
  EXPECT_TRUE(seeded_mixture(everywhere)
                  ->named_parameters()
                  .contains("transformer.h.0.mlp.gate.weight"));
}

TEST(GptMixtureTest, TheAuxiliaryLossIsAddedWhileTraining) {
  auto config = mixture_config();
  config.decoder_sparse_step = 1;
  const auto model = seeded_mixture(config);
  const auto with = loss_of(*model, 0).item<double>();
  const auto tally = model->mixtures();
  EXPECT_EQ(tally.num_mixtures, 3);
  EXPECT_EQ(tally.num_choices, 3 * 32);
  EXPECT_GT(tally.num_dropped, 0);
  EXPECT_FALSE(tally.aux_loss.requires_grad());
  EXPECT_GT(tally.aux_loss.item<double>(), 3);  // 1 for each if even
  config.router_aux_loss_coefficient = 0;
  const auto without = loss_of(*seeded_mixture(config), 0).item<double>();
  EXPECT_NEAR(with - without, 0.01 * tally.aux_loss.item<double>(), 1e-5);

  model->eval();
  const auto evaluated = loss_of(*model, 0).item<double>();
  EXPECT_EQ(model->mixtures().num_dropped, 0);
  const auto targets = tokens_of_rank(0).roll(1, 1);
  EXPECT_NEAR(
      evaluated,
      at::cross_entropy_loss(model->forward(tokens_of_rank(0)).flatten(0, 1),
                             targets.flatten())
          .item<double>(),
      1e-5);
}

TEST(GptMixtureTest, InEvaluationLaterTokensDoNotChangeEarlierLogits) {
  const auto model = seeded_mixture(mixture_config(2));
  model->eval();
  auto tokens = tokens_of_rank(1);
  const auto before = model->forward(tokens);
  tokens.slice(1, 10).fill_(3);
  const auto after = model->forward(tokens);
  EXPECT_TRUE(
      at::allclose(before.slice(1, 0, 10), after.slice(1, 0, 10), 0, 1e-4));
}

using Grads = std::map<std::string, at::Tensor>;

Grads grads_of(CausalLm& model, int rank) {
  loss_of(model, rank).backward();
  Grads grads;
  for (const auto& param : model.named_parameters()) {
    grads[param.key()] = param.value().grad();
  }
  return grads;
}

TEST(GptMixtureTest, ActivationCheckpointingChangesNoBit) {
  auto config = mixture_config(2);
  config.router_jitter = 0.1;
  config.residual_dropout = 0.2;
  Grads grads[2];
  for (const bool is_checkpointed : {false, true}) {
    config.activation_checkpointing = is_checkpointed;
    const auto model = seeded_mixture(config);
    at::manual_seed(11);
    grads[is_checkpointed] = grads_of(*model, 0);
  }
  for (const auto& [name, grad] : grads[0]) {
    EXPECT_TRUE(at::equal(grad, grads[1].at(name))) << name;
  }
}

// Gradients summed over the ranks that hold a parameter.
Grads summed_grads(const ModelConfig& config, int num_ranks, bool is_shared,
                   std::vector<double>* losses) {
  Grads sums;
  std::mutex mutex;
  losses->resize(static_cast<std::size_t>(num_ranks));
  run_ranks(num_ranks, [&](World& world) {
    at::set_num_threads(1);
    const auto model = seeded_mixture(
        config, {.expert = is_shared ? &world.group() : nullptr});
    // A checkpoint puts back the generator that others still draw from.
    barrier(world.group()).wait();
    const auto grads = grads_of(*model, world.rank());
    const auto loss = loss_of(*model, world.rank()).item<double>();
    const std::lock_guard lock(mutex);
    (*losses)[static_cast<std::size_t>(world.rank())] = loss;
    for (const auto& [name, grad] : grads) {
      auto& sum = sums[name];
      sum = sum.defined() ? sum + grad : grad;
    }
  });
  return sums;
}

TEST(GptMixtureTest, ExpertSizeNEqualsExpertSizeOne) {
  for (const int num_ranks : {2, 4}) {
    for (const bool is_checkpointed : {false, true}) {
      auto config = mixture_config(2);
      config.activation_checkpointing = is_checkpointed;
      std::vector<double> losses;
      std::vector<double> expected_losses;
      const auto expected =
          summed_grads(config, num_ranks, false, &expected_losses);
      const auto actual = summed_grads(config, num_ranks, true, &losses);
      for (std::size_t rank = 0; rank < losses.size(); ++rank) {
        EXPECT_NEAR(losses[rank], expected_losses[rank], 1e-5);
      }
      ASSERT_EQ(actual.size(), expected.size());
      for (const auto& [name, grad] : expected) {
        EXPECT_LE((actual.at(name) - grad).norm().item<double>(),
                  1e-4 * grad.norm().item<double>() + 1e-6)
            << name;
      }
    }
  }
}

}  // namespace
}  // namespace nfold::train
