#include "train/whole_weights.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <map>
#include <memory>
#include <mutex>
#include <utility>

#include "nfold/moe.h"
#include "testing/thread_world.h"
#include "train/models/causal_lm.h"

namespace nfold::train {
namespace {

struct MixtureModelImpl : torch::nn::Module {
  explicit MixtureModelImpl(Group* expert_group) {
    for (int i = 0; i < 2; ++i) {
      layers->push_back(MixtureOfExperts(
          MixtureOptions{
              .hidden_size = 3, .num_experts = 6, .expert_group = expert_group},
          [] { return torch::nn::Linear(3, 3); }));
    }
    register_module("layers", layers);
    head = register_module("head", torch::nn::Linear(3, 1));
    // Values that the name alone decides.
    torch::NoGradGuard no_grad;
    for (auto& item : named_parameters()) {
      item.value().fill_(
          static_cast<double>(std::hash<std::string>{}(item.key()) % 10000));
    }
  }

  torch::nn::ModuleList layers;
  torch::nn::Linear head{nullptr};
};
TORCH_MODULE(MixtureModel);

// nullptr itself would make an empty holder.
constexpr Group* kNoGroup = nullptr;

TEST(WholeWeightsTest, HaveTheExpertsOfAllRanks) {
  const MixtureModel whole(kNoGroup);
  const auto expected = whole->named_parameters();
  run_ranks(3, [&](World& world) {
    const MixtureModel model(&world.group());
    const auto weights = whole_weights(*model, {});
    if (world.rank() != 0) {
      EXPECT_EQ(weights.size(), model->named_parameters().size());
      return;
    }
    std::map<std::string, at::Tensor> by_name(weights.begin(), weights.end());
    EXPECT_EQ(weights.size(), expected.size());
    for (const auto& item : expected) {
      ASSERT_TRUE(by_name.contains(item.key())) << item.key();
      EXPECT_TRUE(torch::equal(by_name[item.key()], item.value()))
          << item.key();
    }
  });
}

// Two ranks share out the experts and two more the columns and rows of each.
TEST(WholeWeightsTest, HaveTheWholeLayersOfATensorGroup) {
  ModelConfig config;
  config.vocab_size = 64;
  config.num_layers = 2;
  config.hidden_size = 16;
  config.num_heads = config.num_kv_heads = 2;
  config.head_dim = 8;
  config.intermediate_size = 24;
  config.max_positions = 8;
  config.num_experts = 4;
  std::mutex mutex;
  const auto made = [&](const ModelGroups& groups) {
    const std::lock_guard lock(mutex);
    torch::manual_seed(5);
    return make_model(config, groups);
  };
  const auto whole = made({});
  const auto expected = whole->named_parameters();
  run_ranks(4, [&](World& world) {
    std::unique_ptr<Group> tensor;
    std::unique_ptr<Group> expert;
    for (int i = 0; i < 2; ++i) {
      auto pair = world.new_group("tensor", {2 * i, 2 * i + 1});
      if (pair) tensor = std::move(pair);
      pair = world.new_group("expert", {i, i + 2});
      if (pair) expert = std::move(pair);
    }
    const ModelGroups groups{.tensor = tensor.get(), .expert = expert.get()};
    const auto weights = whole_weights(*made(groups), groups);
    if (world.rank() != 0) return;
    EXPECT_EQ(weights.size(), expected.size());
    for (const auto& [name, value] : weights) {
      ASSERT_TRUE(expected.contains(name)) << name;
      EXPECT_TRUE(torch::equal(value, expected[name])) << name;
    }
  });
}

TEST(WholeWeightsTest, OfAModelWithoutSharedExpertsAreItsParameters) {
  const MixtureModel model(kNoGroup);
  const auto weights = whole_weights(*model, {});
  const auto expected = model->named_parameters();
  ASSERT_EQ(weights.size(), expected.size());
  for (std::size_t i = 0; i < weights.size(); ++i) {
    EXPECT_EQ(weights[i].first, expected[i].key());
    EXPECT_TRUE(weights[i].second.is_same(expected[i].value()));
  }
}

}  // namespace
}  // namespace nfold::train
