// The models split over groups: the same losses, logits and gradients as on
// one rank.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <mutex>

#include "nfold/collectives.h"
#include "nfold/errors.h"
#include "nfold/mesh.h"
#include "nfold/sequence_parallel.h"
#include "nfold/tensor_parallel.h"
#include "testing/raised_text.h"
#include "testing/thread_world.h"
#include "train/models/causal_lm.h"

namespace nfold::train {
namespace {

using ::testing::HasSubstr;

struct SplitCase {
  std::string type;
  int tensor = 1;
  int sequence = 1;
  bool is_tied = true;
  bool is_checkpointed = false;
};

void PrintTo(const SplitCase& split, std::ostream* out) {
  *out << split.type << " tensor " << split.tensor << " sequence "
       << split.sequence << (split.is_tied ? " tied" : "")
       << (split.is_checkpointed ? " checkpointed" : "");
}

ModelConfig splittable_config(const SplitCase& split) {
  ModelConfig config;
  config.model_type = split.type;
  config.vocab_size = 64;
  config.num_layers = 3;
  config.hidden_size = 64;
  config.num_heads = 8;
  config.num_kv_heads = split.type == "llama" ? 4 : 8;
  config.head_dim = 8;
  config.intermediate_size = 96;
  config.max_positions = 24;
  // Large, so that a wrong row of a table shows.
  config.initializer_range = 0.1;
  config.tie_word_embeddings = split.is_tied;
  config.activation_checkpointing = split.is_checkpointed;
  return config;
}

// Ranks are threads that share torch's random state.
std::shared_ptr<CausalLm> made_alone(const ModelConfig& config,
                                     const ModelGroups& groups) {
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  at::manual_seed(5);
  return make_model(config, groups);
}

at::Tensor odd_tokens(std::int64_t length, std::int64_t step) {
  return (at::arange(2 * length, at::kLong) * step + 3)
      .remainder(64)
      .view({2, length});
}

Mesh split_mesh(const World& world, const SplitCase& split) {
  Config config;
  config.tensor_parallel_size = split.tensor;
  config.sequence_parallel_size = split.sequence;
  return Mesh(world, config);
}

// Raises where the mesh lacks a group that the case needs.
ModelGroups groups_of(const Mesh& mesh, const SplitCase& split) {
  ModelGroups groups;
  if (split.tensor > 1) groups.tensor = &mesh.group("tensor_parallel");
  if (split.sequence > 1) groups.sequence = &mesh.group("sequence_parallel");
  return groups;
}

void expect_near(const at::Tensor& found, const at::Tensor& expected,
                 double tolerance) {
  ASSERT_TRUE(found.defined());
  ASSERT_EQ(found.sizes(), expected.sizes());
  const double difference = (found - expected).abs().max().item<double>();
  EXPECT_LE(difference, tolerance * expected.abs().max().item<double>());
}

// Sums gradients over the sequence group, as an engine does, and compares
// each with this rank's part of the whole model's.
void expect_gradients_of(const ModelGroups& groups, CausalLm& split,
                         const CausalLm& whole) {
  const auto expected = whole.named_parameters();
  const auto found = split.named_parameters();
  ASSERT_EQ(found.size(), expected.size());
  for (const auto& item : found) {
    SCOPED_TRACE(item.key());
    at::Tensor grad = item.value().grad().clone();
    if (groups.sequence) all_reduce(*groups.sequence, grad).wait();
    at::Tensor twin = expected[item.key()].grad();
    if (const auto cut = split_of(split, item.key())) {
      twin = part_of(groups.tensor, twin, *cut);
    }
    expect_near(grad, twin, 1e-5);
  }
}

class ModelGroupsTest : public testing::TestWithParam<SplitCase> {};

std::vector<SplitCase> split_cases() {
  std::vector<SplitCase> cases;
  for (const char* type : {"gpt2", "llama"}) {
    cases.push_back({.type = type, .tensor = 2});
    cases.push_back({.type = type, .tensor = 2, .is_tied = false});
    cases.push_back({.type = type, .tensor = 4});
    cases.push_back({.type = type, .sequence = 2});
    cases.push_back({.type = type, .sequence = 4, .is_tied = false});
    cases.push_back({.type = type, .tensor = 2, .sequence = 2});
    cases.push_back({.type = type,
                     .tensor = 2,
                     .sequence = 2,
                     .is_tied = false,
                     .is_checkpointed = true});
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Splits, ModelGroupsTest,
                         testing::ValuesIn(split_cases()));

TEST_P(ModelGroupsTest, LossAndGradientsAreThoseOfOneRank) {
  const SplitCase split = GetParam();
  run_ranks(split.tensor * split.sequence, [&](World& world) {
    const Mesh mesh = split_mesh(world, split);
    const ModelGroups groups = groups_of(mesh, split);
    const ModelConfig config = splittable_config(split);
    const auto whole = made_alone(config, {});
    const auto part = made_alone(config, groups);
    // Checkpointing puts the random state back, which others may be using.
    barrier(world.group()).wait();
    for (const std::int64_t length : {16, 24}) {
      whole->zero_grad();
      part->zero_grad();
      const auto tokens = odd_tokens(length, 7);
      const auto targets = odd_tokens(length, 11);
      const auto expected = whole->loss(tokens, targets);
      const auto found = part->loss(split_sequence(groups.sequence, tokens),
                                    split_sequence(groups.sequence, targets));
      expect_near(found, expected, 1e-6);
      expected.backward();
      found.backward();
      expect_gradients_of(groups, *part, *whole);
    }
  });
}

TEST_P(ModelGroupsTest, LogitsAreThoseOfOneRank) {
  const SplitCase split = GetParam();
  run_ranks(split.tensor * split.sequence, [&](World& world) {
    const at::NoGradGuard no_grad;
    const Mesh mesh = split_mesh(world, split);
    const ModelGroups groups = groups_of(mesh, split);
    const ModelConfig config = splittable_config(split);
    const auto whole = made_alone(config, {});
    const auto part = made_alone(config, groups);
    const auto tokens = odd_tokens(16, 7);
    expect_near(part->forward(split_sequence(groups.sequence, tokens)),
                split_sequence(groups.sequence, whole->forward(tokens)), 1e-5);
    // Lengths that do not divide, and that the model has no more of.
    for (const std::int64_t length : {1, 13, 24}) {
      const auto prompt = odd_tokens(length, 5);
      expect_near(part->next_logits(prompt),
                  whole->forward(prompt).select(1, length - 1), 1e-5);
    }
  });
}

TEST_P(ModelGroupsTest, PartsJoinToTheWholeModel) {
  const SplitCase split = GetParam();
  run_ranks(split.tensor * split.sequence, [&](World& world) {
    const Mesh mesh = split_mesh(world, split);
    const ModelGroups groups = groups_of(mesh, split);
    const ModelConfig config = splittable_config(split);
    const auto expected = made_alone(config, {});
    const auto part = made_alone(config, groups);
    for (const auto& item : part->named_parameters()) {
      const auto cut = split_of(*part, item.key());
      const auto whole =
          cut ? whole_of(groups.tensor, item.value(), *cut) : item.value();
      EXPECT_TRUE(at::equal(expected->named_parameters()[item.key()], whole))
          << item.key();
    }
  });
}

std::string refusal(const ModelConfig& config, const ModelGroups& groups) {
  return text_of<c10::ValueError>([&] { make_model(config, groups); });
}

TEST(ModelGroupsError, SizesThatDoNotDivideAreNamed) {
  run_ranks(3, [](World& world) {
    const ModelGroups tensor{.tensor = &world.group()};
    const ModelGroups sequence{.sequence = &world.group()};
    ModelConfig config = splittable_config({.type = "gpt2"});
    EXPECT_THAT(refusal(config, tensor),
                HasSubstr("vocabulary: 64 do not divide by the 3 ranks"));
    config.vocab_size = 63;
    EXPECT_THAT(refusal(config, tensor),
                HasSubstr("(n_head): 8 do not divide by the 3 ranks"));
    EXPECT_THAT(refusal(config, sequence),
                HasSubstr("(n_head): 8 do not divide by the 3 ranks"));
    config.max_positions = 25;
    EXPECT_THAT(refusal(config, sequence),
                HasSubstr("25 do not divide by the 3 ranks"));
    ModelConfig llama = splittable_config({.type = "llama"});
    llama.vocab_size = 63;
    llama.num_heads = 12;
    EXPECT_THAT(refusal(llama, tensor),
                HasSubstr("(num_key_value_heads): 4 do not divide by the 3"));
    llama.num_kv_heads = 3;
    llama.intermediate_size = 100;
    EXPECT_THAT(refusal(llama, tensor),
                HasSubstr("100 do not divide by the 3 ranks"));
  });
}

TEST(ModelGroupsError, SequencesLongerThanThePositionsCountAllRanks) {
  run_ranks(2, [](World& world) {
    const ModelConfig config = splittable_config({.type = "gpt2"});
    const auto model = made_alone(config, {.sequence = &world.group()});
    EXPECT_THAT(
        text_of<c10::ValueError>([&] { model->forward(odd_tokens(13, 7)); }),
        HasSubstr("found 26 tokens in a row"));
  });
}

}  // namespace
}  // namespace nfold::train
