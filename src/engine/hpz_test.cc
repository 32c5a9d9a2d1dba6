// hpZ: a second, larger shard on few ranks, from which parameters are gathered
// again in backward. The same training as stage 3, with other traffic.
#include "engine/engine_test.h"

namespace nfold::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

// Re-gathering in backward is forced.
Config hpz_config(int group_size, int accumulation = 1,
                  const std::string& more = "",
                  const std::string& optimizer = kAdamW) {
  return stage3_config(fmt::format(R"(, "stage3_max_reuse_distance": 0,
                                         "zero_hpz_partition_size": {})",
                                   group_size),
                       accumulation, more, optimizer);
}

TEST(HpzTest, FiftyStepsGiveTheBitsOfStage3) {
  for (const int num_ranks : {2, 4, 8}) {
    const auto expected = train_tower(hpz_config(1), num_ranks, 50);
    for (int size = 2; size <= num_ranks; size *= 2) {
      expect_equal(train_tower(hpz_config(size), num_ranks, 50), expected);
    }
  }
}

TEST(HpzTest, OddWorldsAccumulationAndBf16GiveTheBitsOfStage3) {
  for (const auto& [num_ranks, size] :
       {std::pair{3, 3}, {5, 5}, {6, 2}, {6, 3}}) {
    for (const int accumulation : {1, 3}) {
      for (const auto* more : {"", kBf16}) {
        const auto expected =
            train_tower(hpz_config(1, accumulation, more), num_ranks);
        expect_equal(
            train_tower(hpz_config(size, accumulation, more), num_ranks),
            expected);
      }
    }
  }
}

// At other reuse distances too, with gathers as sums, one at a time.
TEST(HpzTest, HowParametersAreGatheredChangesNothing) {
  const auto expected = train_tower(hpz_config(1), 4);
  for (const std::int64_t reuse : {0, 500, 1 << 30}) {
    for (const bool all_reduces : {false, true}) {
      auto config = hpz_config(2);
      config.zero_optimization.stage3_max_reuse_distance = reuse;
      config.zero_optimization.stage3_use_all_reduce_for_fetch_params =
          all_reduces;
      config.zero_optimization.stage3_allgather_sequential = all_reduces;
      expect_equal(train_tower(config, 4), expected);
    }
  }
}

TEST(HpzTest, ForwardGathersOverAllRanksAndBackwardAmongNeighbours) {
  const auto config = hpz_config(2);
  on_ranks(4, config, [&](World& world, Mesh& mesh) {
    Tower model(24);
    Engine engine(model, mesh, config);
    EXPECT_EQ(
        mesh.secondary_shard()->global_ranks(),
        world.rank() < 2 ? std::vector<int>({0, 1}) : std::vector<int>({2, 3}));
    const auto gathered = [](const Group& group) {
      return group.counts()[static_cast<std::size_t>(Collective::kAllGather)]
          .bytes;
    };
    for (int step = 0; step < 3; ++step) {
      const auto all = gathered(mesh.data_parallel());
      const auto near = gathered(*mesh.secondary_shard());
      const auto loss = model->loss(step * 4 + world.rank());
      const auto all_forward = gathered(mesh.data_parallel());
      const auto near_forward = gathered(*mesh.secondary_shard());
      EXPECT_GE(all_forward - all, numel_of(*model) * 4 * 3 / 4);
      EXPECT_EQ(near_forward, near) << "a step made the copies out of date";
      engine.backward(loss);
      EXPECT_EQ(gathered(mesh.data_parallel()), all_forward);
      // Backward has no use for the first block.
      const auto used = numel_of(*model) - numel_of(*model->blocks[0]);
      EXPECT_GE(gathered(*mesh.secondary_shard()) - near_forward, used * 4 / 2);
      engine.step();
    }
  });
}

TEST(HpzTest, ASecondaryShardTakesTheModelOverItsGroup) {
  for (const int size : {1, 2, 4}) {
    const auto config = hpz_config(size);
    on_ranks(4, config, [&](World& world, Mesh& mesh) {
      Tower model(128);
      const auto bytes = static_cast<double>(4 * numel_of(*model));
      const auto secondary = size == 1 ? 0 : bytes / size;
      Engine engine(model, mesh, config);
      EXPECT_LE(engine.memory().params_bytes, 1.02 * bytes / 4);
      engine.backward(model->loss(world.rank()));
      const auto held = static_cast<double>(engine.memory().params_bytes);
      EXPECT_GE(held, bytes / 4 + secondary);
      EXPECT_LE(held, 1.02 * (bytes / 4 + secondary));
      engine.step();
      EXPECT_LE(engine.memory().params_bytes, 1.02 * bytes / 4);
    });
  }
}

TEST(HpzTest, EvaluationAndScopesSeeTheCurrentValues) {
  const auto config = hpz_config(2, 1, "", kSgd);
  on_ranks(4, config, [&](World& world, Mesh& mesh) {
    Tower model(16);
    Engine engine(model, mesh, config);
    const auto evaluate = [&] {
      torch::NoGradGuard no_grad;
      return model->loss(0).item<float>();
    };
    for (int step = 0; step < 3; ++step) {
      train_step(engine, model->loss(step * 4 + world.rank()));
      const auto once = evaluate();
      EXPECT_EQ(evaluate(), once) << "from the secondary shards";
      Tower twin(16);
      torch::NoGradGuard no_grad;
      const auto params = model->parameters();
      const auto twins = twin->parameters();
      for (std::size_t i = 0; i < params.size(); ++i) {
        twins[i].copy_(safe_get_full_fp32_param(engine, params[i]));
      }
      EXPECT_EQ(twin->loss(0).item<float>(), once);
    }
    {
      const GatheredParameters scope(model->head->weight, {.modifier_rank = 3});
      torch::NoGradGuard no_grad;
      model->head->weight.fill_(world.rank());
    }
    EXPECT_EQ(model->head->weight.mean().item<float>(), 3);
    EXPECT_EQ(model->head->weight.mean().item<float>(), 3);
    train_step(engine, model->loss(world.rank()));
  });
}

// A size beyond the world means the world.
TEST(HpzTest, SizesThatDoNotDivideAndOtherStagesAreErrors) {
  EXPECT_THAT(
      error_of([&] { on_ranks(3, hpz_config(2), [](World&, Mesh&) {}); }),
      HasSubstr("3 is not divisible by 2"));
  expect_equal(train_tower(hpz_config(16), 2), train_tower(hpz_config(1), 2));
  EXPECT_THAT(
      error_of([] {
        config_of({.stage = 2, .zero = R"(, "zero_hpz_partition_size": 2)"});
      }),
      AllOf(HasSubstr("zero_hpz_partition_size"), HasSubstr("3")));
  EXPECT_THAT(
      error_of([] {
        config_of({.stage = 3, .zero = R"(, "zero_hpz_partition_size": 2,
                                        "mics_shard_size": 2)"});
      }),
      AllOf(HasSubstr("zero_hpz_partition_size"),
            HasSubstr("mics_shard_size")));
}

TEST(HpzTest, WhatASecondaryShardTakesIsReportedAndItsParametersAreInactive) {
  const auto config = hpz_config(2);
  on_ranks(4, config, [&](World& world, Mesh& mesh) {
    Tower model(128);
    const auto bytes = static_cast<double>(4 * numel_of(*model));
    Engine engine(model, mesh, config);
    const auto loss = model->loss(world.rank());
    EXPECT_EQ(get_inactive_params(model->blocks->parameters()).size(),
              model->blocks->parameters().size());
    engine.backward(loss);
    EXPECT_GE(engine.step().memory.params_bytes, bytes / 4 + bytes / 2);
  });
}

}  // namespace
}  // namespace nfold::testing
