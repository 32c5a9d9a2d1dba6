// Stage 3 where ranks share memory: gathers need no partner.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <functional>

#include "engine/engine_test.h"

namespace nfold {
namespace {

using ::testing::HasSubstr;
using namespace nfold::testing;

constexpr ThreadWorldOptions kShared{.transport = Transport::kShm};

// Trains a tower of this many columns on each of num_ranks threads.
constexpr std::int64_t kWidth = 16;
using TowerBody = std::function<void(World&, Tower&, Engine&)>;
void on_towers(int num_ranks, const TowerBody& body,
               const Config& config = stage3_config("")) {
  on_ranks(
      num_ranks, config,
      [&](World& world, Mesh& mesh) {
        Tower model(kWidth);
        Engine engine(model, mesh, config);
        body(world, model, engine);
      },
      kShared);
}

// Of a tower: its blocks and the head.
constexpr std::int64_t kNumUnits = 6;

class SharedGather : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Ranks, SharedGather, ::testing::Values(2, 3, 4));

// A tower of which each rank uses other blocks, each as often as it likes.
at::Tensor branching_loss(TowerImpl& tower, int rank, int step) {
  auto x = torch::cos(torch::arange(2 * tower.width) * 0.3 + rank + step)
               .view({2, tower.width});
  for (std::size_t i = 0; i < tower.blocks->size(); ++i) {
    const auto times = (static_cast<int>(i) + rank + step) % 3;
    for (int time = 0; time < times; ++time) {
      x = torch::tanh(tower.blocks[i]->as<torch::nn::Linear>()->forward(x));
    }
  }
  return tower.head(x).square().mean();
}

std::vector<at::Tensor> trained_on_branches(const Config& config,
                                            int num_ranks) {
  std::vector<at::Tensor> params;
  on_towers(
      num_ranks,
      [&](World& world, Tower& model, Engine& engine) {
        for (int step = 0; step < 8; ++step) {
          train_step(engine, branching_loss(*model, world.rank(), step));
        }
        for (const auto& param : model->parameters()) {
          auto value = safe_get_full_fp32_param(engine, param);
          if (world.rank() == 0) params.push_back(std::move(value));
        }
      },
      config);
  return params;
}

TEST_P(SharedGather, RanksMayTakeDifferentBranches) {
  const auto sharded = trained_on_branches(stage3_config(""), GetParam());
  const auto whole = trained_on_branches(
      config_of({.stage = 0, .optimizer = kAdamW}), GetParam());
  ASSERT_EQ(sharded.size(), whole.size());
  for (std::size_t i = 0; i < whole.size(); ++i) {
    EXPECT_TRUE(same_bits(sharded[i], whole[i])) << i;
  }
}

TEST_P(SharedGather, RanksMayGenerateTextsOfDifferentLengths) {
  on_towers(GetParam(), [&](World& world, Tower& model, Engine& engine) {
    for (int step = 0; step < 4; ++step) {
      train_step(engine, model->loss(step));
      torch::NoGradGuard no_grad;
      auto x = torch::ones({1, kWidth});
      for (int i = 0; i < 3 * world.rank() + step; ++i) {
        x = model->forward(x).sum() * torch::ones({1, kWidth});
        ASSERT_TRUE(torch::isfinite(x).all().item<bool>());
      }
    }
  });
}

TEST_P(SharedGather, NothingIsSentAndNothingIsHeldToGather) {
  on_towers(GetParam(), [&](World& world, Tower& model, Engine& engine) {
    StepReport report;
    for (int step = 0; step < 2; ++step) {
      report = train_step(engine, model->loss(step));
    }
    EXPECT_EQ(
        report.comm[static_cast<std::size_t>(Collective::kAllGather)].bytes,
        kNumUnits * (world.size() - 1) * 2 * 8)
        << "the sums of the norm only";
    EXPECT_EQ(report.memory.gathered_peak_bytes, 0);
  });
}

TEST_P(SharedGather, AScopeIsSeenByOthersOnlyOnceItIsClosed) {
  on_towers(GetParam(), [&](World& world, Tower& model, Engine& engine) {
    auto weight = model->head->weight;
    const auto before = safe_get_full_fp32_param(engine, weight);
    {
      GatheredParameters scope({weight}, {.modifier_rank = 1});
      torch::NoGradGuard no_grad;
      weight.fill_(world.rank() + 1);
      barrier(world.group()).wait();
      EXPECT_EQ(weight.min().item<float>(), world.rank() + 1);
    }
    EXPECT_EQ(weight.detach().min().item<float>(), 2);
    EXPECT_EQ(weight.detach().max().item<float>(), 2);
    train_step(engine, model->loss(0));
    EXPECT_FALSE(
        torch::equal(safe_get_full_fp32_param(engine, weight), before));
  });
}

TEST_P(SharedGather, SettersOfOneRankReachAll) {
  on_towers(GetParam(), [&](World&, Tower& model, Engine& engine) {
    auto weight = model->head->weight;
    for (int round = 0; round < 5; ++round) {
      safe_set_full_fp32_param(
          engine, weight, torch::full_like(torch::empty({3, kWidth}), round));
      torch::NoGradGuard no_grad;
      EXPECT_EQ((weight * 1).min().item<float>(), round);
    }
  });
}

// What an evaluation on one rank alone would need of the others: nothing.
TEST_P(SharedGather, OneRankMayEvaluateAlone) {
  on_towers(GetParam(), [&](World& world, Tower& model, Engine& engine) {
    float before = 0;
    for (int step = 0; step < 3; ++step) {
      if (world.rank() == 0) {
        torch::NoGradGuard no_grad;
        const auto value = model->loss(7).item<float>();
        EXPECT_NE(value, before);
        before = value;
      }
      train_step(engine, model->loss(step));
    }
  });
}

TEST(SharedGatherErrors, ARankThatDoesNotStepIsNamed) {
  const auto config = stage3_config(R"(, "overlap_comm": false)");
  run_ranks(
      2,
      [&](World& world) {
        Mesh mesh(world, config);
        Tower model(kWidth);
        Engine engine(model, mesh, config);
        if (world.rank() == 1) return;  // leaves
        EXPECT_THAT(error_of([&] { train_step(engine, model->loss(0)); }),
                    HasSubstr("rank 1"));
      },
      kShared);
}

}  // namespace
}  // namespace nfold
