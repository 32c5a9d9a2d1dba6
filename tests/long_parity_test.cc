// One answer over shared memory and over many steps: every stage, MiCS and hpZ,
// overlap on and off, and three bucket sizes, with 2, 3 and 4 ranks.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <iterator>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "training_run.h"

namespace nfold::testing {
namespace {

constexpr int kNumSteps = 200;
constexpr int kDepth = 4;
constexpr std::int64_t kInner = 41;

// Small, so that many runs of many steps take seconds, and of odd sizes, so
// that nothing divides by the number of ranks. Units of 80 elements between
// an embedding and a last layer of 784, more where four ranks share them.
constexpr std::int64_t kNarrow = 7;
constexpr std::int64_t kBucketNumels[] = {1, 300, 500000000};

struct SmallModelImpl : torch::nn::Module {
  SmallModelImpl() {
    embedding = register_module("embedding",
                                torch::nn::Embedding(kVocabulary, kNarrow));
    for (int i = 0; i < kDepth; ++i) {
      blocks->push_back(torch::nn::Linear(kNarrow, kNarrow));
    }
    register_module("blocks", blocks);
    inner = register_module("inner", torch::nn::Linear(kNarrow, kInner));
    head = register_module("head", torch::nn::Linear(kInner, kVocabulary));
  }

  at::Tensor loss(const at::Tensor& tokens, const at::Tensor& targets) {
    auto x = embedding(tokens.flatten());
    for (const auto& block : *blocks) {
      x = x + torch::tanh(block->as<torch::nn::Linear>()->forward(x));
    }
    return torch::cross_entropy_loss(head(torch::tanh(inner(x))),
                                     targets.flatten());
  }

  torch::nn::Embedding embedding{nullptr};
  torch::nn::ModuleList blocks;
  torch::nn::Linear inner{nullptr};
  torch::nn::Linear head{nullptr};
};
TORCH_MODULE(SmallModel);

TrainedModel small_model_to_train() {
  const auto model = SmallModel().ptr();
  return {model,
          [model](const at::Tensor& tokens, const at::Tensor& targets,
                  std::int64_t) { return model->loss(tokens, targets); }};
}

RunSettings settings_with(int num_ranks, int stage) {
  RunSettings settings;
  settings.num_ranks = num_ranks;
  settings.transport = Transport::kShm;
  settings.make_model = small_model_to_train;
  settings.num_steps = kNumSteps;
  settings.stage = stage;
  if (stage == 3) {
    settings.more_zero = R"(, "stage3_param_persistence_threshold": 0)";
  }
  return settings;
}

RunSettings mics(int num_ranks, int shard_size) {
  auto settings = settings_with(num_ranks, 3);
  settings.more_zero += fmt::format(R"(, "mics_shard_size": {})", shard_size);
  return settings;
}

// Backward gathers again, from the second copy.
RunSettings hpz(int num_ranks, int partition_size) {
  auto settings = settings_with(num_ranks, 3);
  settings.more_zero += fmt::format(
      R"(, "stage3_max_reuse_distance": 0, "zero_hpz_partition_size": {})",
      partition_size);
  return settings;
}

using Pair = std::pair<bool, std::int64_t>;  // overlaps, elements of a bucket

std::vector<Pair> all_pairs() {
  std::vector<Pair> pairs;
  for (const bool overlaps : {false, true}) {
    for (const auto numel : kBucketNumels) pairs.emplace_back(overlaps, numel);
  }
  return pairs;
}

// Every value of both.
std::vector<Pair> few_pairs() {
  return {{true, kBucketNumels[0]},
          {false, kBucketNumels[1]},
          {true, kBucketNumels[2]}};
}

class LongParity : public ::testing::TestWithParam<int> {
 protected:
  static int num_ranks() { return GetParam(); }

  // Stage 0 without overlap, with the largest buckets.
  static const RunResult& reference() {
    static std::map<int, RunResult> results;
    const bool is_new = results.find(num_ranks()) == results.end();
    auto& result = results[num_ranks()];
    if (is_new) result = run_sharded(settings_with(num_ranks(), 0));
    return result;
  }

  static void expect_the_bits_of_stage_0(RunSettings settings,
                                         const std::vector<Pair>& pairs) {
    for (const auto& [overlaps, bucket_numel] : pairs) {
      settings.overlaps = overlaps;
      settings.bucket_numel = bucket_numel;
      EXPECT_EQ(difference(run_sharded(settings), reference()), "")
          << name_of(settings);
    }
  }

  static void expect_to_come_near(const RunSettings& settings,
                                  const RunResult& expected) {
    const auto actual = run_sharded(settings);
    EXPECT_LT(relative_curve_difference(actual, expected), 1e-5)
        << name_of(settings);
    EXPECT_LT(relative_difference(actual, expected), 1e-5) << name_of(settings);
    EXPECT_NE(difference(actual, expected), "")
        << name_of(settings) << " is a case for expect_the_bits_of_stage_0";
  }
};

INSTANTIATE_TEST_SUITE_P(OfShm, LongParity, ::testing::Values(2, 3, 4),
                         [](const auto& info) {
                           return fmt::format("Ranks{}", info.param);
                         });

// Else equal bits would say little.
TEST_P(LongParity, TrainsInOtherBucketsForEachSize) {
  EXPECT_EQ(reference().grad_norms.size(), kNumSteps);
  EXPECT_LT(reference().mean_losses.back(), reference().mean_losses.front());
  auto settings = settings_with(num_ranks(), 2);
  settings.num_steps = 1;
  std::set<std::int64_t> num_reductions;
  for (const auto numel : kBucketNumels) {
    settings.bucket_numel = numel;
    const auto& counts = run_sharded(settings).last_report.comm;
    num_reductions.insert(
        counts[static_cast<std::size_t>(Collective::kReduceScatter)].calls);
  }
  EXPECT_EQ(num_reductions.size(), std::size(kBucketNumels));
}

TEST_P(LongParity, Stage0GivesOneAnswer) {
  expect_the_bits_of_stage_0(settings_with(num_ranks(), 0), few_pairs());
}
TEST_P(LongParity, Stage1GivesTheBitsOfStage0) {
  expect_the_bits_of_stage_0(settings_with(num_ranks(), 1), few_pairs());
}
TEST_P(LongParity, Stage2GivesTheBitsOfStage0) {
  expect_the_bits_of_stage_0(settings_with(num_ranks(), 2), all_pairs());
}
TEST_P(LongParity, Stage3GivesTheBitsOfStage0) {
  expect_the_bits_of_stage_0(settings_with(num_ranks(), 3), all_pairs());
}
TEST_P(LongParity, HpzGivesTheBitsOfStage0) {
  expect_the_bits_of_stage_0(
      hpz(num_ranks(), num_ranks() == 4 ? 2 : num_ranks()), few_pairs());
}

// With a power of two of ranks sums take the order of those over all ranks, and
// means lose no bit. So does one group.
TEST_P(LongParity, MicsGivesTheBitsOfStage0) {
  for (const int shard_size : {1, 2, 3, 4}) {
    if (num_ranks() % shard_size != 0) continue;
    if (num_ranks() == 3 && shard_size == 1) continue;  // comes near
    expect_the_bits_of_stage_0(mics(num_ranks(), shard_size), few_pairs());
  }
}

// Each of three groups rounds its mean; two micro steps are added up before the
// replicas are.
TEST_P(LongParity, OtherwiseMicsComesNear) {
  if (num_ranks() == 3) expect_to_come_near(mics(3, 1), reference());
  auto settings = settings_with(num_ranks(), 0);
  settings.global_rows = 24;
  settings.accumulation_steps = 2;
  const auto expected = run_sharded(settings);
  settings = mics(num_ranks(), 1);
  settings.global_rows = 24;
  settings.accumulation_steps = 2;
  expect_to_come_near(settings, expected);
}

}  // namespace
}  // namespace nfold::testing
