// One answer: every stage, overlap on or off, any bucket size, with and
// without accumulation, in every precision; and the answer is that of plain
// libtorch.

#include <gtest/gtest.h>

#include "training_run.h"

namespace nfold::testing {
namespace {

constexpr const char* kBf16 = R"(, "bf16": {"enabled": true})";
constexpr const char* kFp16 =
    R"(, "fp16": {"enabled": true, "initial_scale_power": 8})";
constexpr const char* kSgd =
    R"({"type": "SGD", "params": {"lr": 0.05, "momentum": 0.9}})";

// Units that come and go: none is small enough to stay.
constexpr const char* kNoPersistence =
    R"(, "stage3_param_persistence_threshold": 0)";

// Stage 3 with every pair of bucket size and live budget; overlap and prefetch
// alternate, so that every pair of options occurs. The largest unit of the
// hard model has 1,248 elements.
void expect_stage_3_to_give(const RunResult& reference, RunSettings settings) {
  settings.stage = 3;
  int variant = 0;
  for (std::int64_t bucket_numel : {1, 2000, 500000000}) {
    for (std::int64_t max_live_numel : {1, 2500, 500000000}) {
      settings.bucket_numel = bucket_numel;
      settings.overlaps = variant % 2 == 0;
      settings.more_zero = kNoPersistence;
      settings.more_zero += R"(, "stage3_max_live_parameters": )" +
                            std::to_string(max_live_numel);
      if (variant % 3 == 0) {
        settings.more_zero += R"(, "stage3_prefetch_bucket_size": 0)";
      }
      if (variant % 4 == 1) {
        settings.more_zero += R"(, "stage3_max_reuse_distance": 0)";
      }
      EXPECT_EQ(difference(run_sharded(settings), reference), "")
          << name_of(settings);
      ++variant;
    }
  }
}

// All variants of one precision and accumulation against the first.
void expect_one_answer(const std::string& precision, int accumulation_steps,
                       int num_ranks) {
  RunSettings settings;
  settings.num_ranks = num_ranks;
  settings.more = precision;
  settings.accumulation_steps = accumulation_steps;
  settings.stage = 0;
  const auto reference = run_sharded(settings);
  EXPECT_LT(reference.mean_losses.back(), reference.mean_losses.front());
  for (int stage : {0, 1, 2}) {
    for (bool overlaps : {false, true}) {
      for (std::int64_t bucket_numel : {1, 2000, 500000000}) {
        settings.stage = stage;
        settings.overlaps = overlaps;
        settings.bucket_numel = bucket_numel;
        EXPECT_EQ(difference(run_sharded(settings), reference), "")
            << name_of(settings);
      }
    }
  }
  expect_stage_3_to_give(reference, settings);
}

TEST(ParityTest, StagesGiveOneAnswerInFp32) { expect_one_answer("", 1, 2); }
TEST(ParityTest, StagesGiveOneAnswerInFp32WithAccumulation) {
  expect_one_answer("", 3, 2);
}
TEST(ParityTest, StagesGiveOneAnswerInBf16) { expect_one_answer(kBf16, 1, 2); }
TEST(ParityTest, StagesGiveOneAnswerInBf16WithAccumulation) {
  expect_one_answer(kBf16, 3, 2);
}
TEST(ParityTest, StagesGiveOneAnswerInFp16) { expect_one_answer(kFp16, 1, 2); }
TEST(ParityTest, StagesGiveOneAnswerInFp16WithAccumulation) {
  expect_one_answer(kFp16, 3, 2);
}

TEST(ParityTest, StagesGiveOneAnswerOnThreeAndFourRanks) {
  for (int num_ranks : {3, 4}) {
    RunSettings settings;
    settings.num_ranks = num_ranks;
    settings.stage = 0;
    const auto reference = run_sharded(settings);
    settings.more_zero = kNoPersistence;
    for (int stage : {1, 2, 3}) {
      settings.stage = stage;
      settings.overlaps = stage == 2;
      EXPECT_EQ(difference(run_sharded(settings), reference), "")
          << name_of(settings);
    }
  }
}

TEST(ParityTest, AllReduceInsteadOfReduceScatterGivesTheSameBits) {
  RunSettings settings;
  const auto reference = run_sharded(settings);
  for (int stage : {2, 3}) {
    settings.stage = stage;
    settings.more_zero = R"(, "reduce_scatter": false)";
    EXPECT_EQ(difference(run_sharded(settings), reference), "");
  }
}

TEST(ParityTest, OtherWaysToFetchGiveTheSameBits) {
  RunSettings settings;
  const auto reference = run_sharded(settings);
  settings.stage = 3;
  for (const auto* more :
       {R"(, "stage3_use_all_reduce_for_fetch_params": true)",
        R"(, "stage3_allgather_sequential": true)",
        R"(, "stage3_model_persistence_threshold": 700)", ""}) {
    settings.more_zero = more;
    EXPECT_EQ(difference(run_sharded(settings), reference), "") << more;
  }
}

TEST(ParityTest, SgdFollowsPlainLibtorch) {
  RunSettings settings;
  settings.optimizer = kSgd;
  const auto plain = run_plain(settings, /*uses_sgd=*/true);
  for (int accumulation_steps : {1, 3}) {
    settings.accumulation_steps = accumulation_steps;
    const auto sharded = run_sharded(settings);
    EXPECT_LT(relative_difference(sharded, plain), 1e-6);
  }
}

TEST(ParityTest, AdamWFollowsPlainLibtorchOnTwoThreeAndFourRanks) {
  RunSettings settings;
  const auto plain = run_plain(settings, /*uses_sgd=*/false);
  for (int num_ranks : {1, 2, 3, 4}) {
    settings.num_ranks = num_ranks;
    const auto sharded = run_sharded(settings);
    for (std::size_t i = 0; i < plain.mean_losses.size(); ++i) {
      EXPECT_NEAR(sharded.mean_losses[i], plain.mean_losses[i],
                  1e-5 * plain.mean_losses[i])
          << "step " << i << ", " << num_ranks << " ranks";
    }
  }
}

TEST(ParityTest, ReducingAtTheBoundaryStaysWithinRounding) {
  RunSettings settings;
  settings.accumulation_steps = 3;
  settings.stage = 1;
  settings.optimizer = kSgd;
  const auto reference = run_sharded(settings);
  settings.more_zero = R"(, "reduce_at_boundary": true)";
  for (int stage : {0, 1}) {
    settings.stage = stage;
    EXPECT_LT(relative_difference(run_sharded(settings), reference), 1e-5);
  }
}

TEST(ParityTest, PreScalingAndPredivideStayWithinRounding) {
  RunSettings settings;
  settings.num_ranks = 3;
  settings.optimizer = kSgd;
  const auto reference = run_sharded(settings);
  for (const auto* more : {R"(, "prescale_gradients": true)",
                           R"(, "gradient_predivide_factor": 2.0)"}) {
    settings.more = more;
    EXPECT_LT(relative_difference(run_sharded(settings), reference), 1e-5)
        << more;
  }
}

}  // namespace
}  // namespace nfold::testing
