#include "nfold/memory_estimates.h"

#include <gtest/gtest.h>

#include "nfold/errors.h"

namespace nfold {
namespace {

constexpr std::int64_t kBillion = 1'000'000'000;

TEST(MemoryEstimates, Stage2WithAndWithoutOffloadedOptimizer) {
  const auto need = [](std::int64_t params, std::int64_t gpus,
                       std::int64_t nodes, bool is_offloaded) {
    return estimate_zero2_model_states_mem_needs(
        {.num_params = params,
         .gpus_per_node = gpus,
         .num_nodes = nodes,
         .is_optimizer_offloaded = is_offloaded});
  };
  EXPECT_EQ(need(kBillion, 8, 1, true),
            (MemoryEstimate{48 * kBillion, 2 * kBillion}));
  EXPECT_EQ(need(kBillion, 8, 1, false),
            (MemoryEstimate{48 * kBillion, 4'250'000'000}));
  EXPECT_EQ(need(kBillion, 1, 1, true),
            (MemoryEstimate{24 * kBillion, 2 * kBillion}));
  EXPECT_EQ(need(3'000'000, 4, 2, false),
            (MemoryEstimate{72'000'000, 12'750'000}));
  // What does not divide is rounded down.
  EXPECT_EQ(need(1, 4, 1, false), (MemoryEstimate{24, 6}));
}

TEST(MemoryEstimates, Stage3WithEveryOffloadAndBuiltWholeOrSharded) {
  const auto need = [](bool is_optimizer, bool are_params, bool is_sharded) {
    return estimate_zero3_model_states_mem_needs(
        {.num_params = kBillion,
         .largest_layer_params = 50'000'000,
         .gpus_per_node = 8,
         .is_optimizer_offloaded = is_optimizer,
         .are_params_offloaded = are_params,
         .is_built_sharded = is_sharded});
  };
  constexpr std::int64_t kLayer = 200'000'000;
  EXPECT_EQ(need(true, true, true),
            (MemoryEstimate{27 * kBillion, kLayer, kLayer}));
  EXPECT_EQ(need(true, true, false),
            (MemoryEstimate{48 * kBillion, kLayer, kLayer}));
  EXPECT_EQ(need(true, false, true),
            (MemoryEstimate{24 * kBillion, 450'000'000, kLayer}));
  EXPECT_EQ(need(true, false, false),
            (MemoryEstimate{48 * kBillion, 450'000'000, kLayer}));
  EXPECT_EQ(need(false, false, true),
            (MemoryEstimate{2'400'000'000, 2'450'000'000, kLayer}));
  EXPECT_EQ(need(false, false, false),
            (MemoryEstimate{48 * kBillion, 2'450'000'000, kLayer}));
}

// Computed with DeepSpeed 0.19.8.
TEST(MemoryEstimates, Stage3OnSeveralNodesRoundsAsDeepSpeedDoes) {
  const auto need = [](bool is_optimizer, bool are_params, bool is_sharded) {
    return estimate_zero3_model_states_mem_needs(
        {.num_params = 1'000'000'007,
         .largest_layer_params = 50'000'001,
         .gpus_per_node = 4,
         .num_nodes = 3,
         .is_optimizer_offloaded = is_optimizer,
         .are_params_offloaded = are_params,
         .is_built_sharded = is_sharded,
         .buffer_factor = 1.25});
  };
  constexpr std::int64_t kLayer = 200'000'004;
  EXPECT_EQ(need(true, true, true),
            (MemoryEstimate{7'500'000'052, kLayer, kLayer}));
  EXPECT_EQ(need(true, true, false),
            (MemoryEstimate{20'000'000'140, kLayer, kLayer}));
  EXPECT_EQ(need(true, false, true),
            (MemoryEstimate{6'666'666'713, 366'666'671, kLayer}));
  EXPECT_EQ(need(false, false, true),
            (MemoryEstimate{1'000'000'020, 1'700'000'014, kLayer}));
}

TEST(MemoryEstimates, RefuseNegativeCountsAndNoDevices) {
  EXPECT_THROW(estimate_zero2_model_states_mem_needs({.num_params = -1}),
               c10::ValueError);
  EXPECT_THROW(estimate_zero3_model_states_mem_needs({.gpus_per_node = 0}),
               c10::ValueError);
}

}  // namespace
}  // namespace nfold
