// Layers split over a tensor group under the engine: the same training for
// every size of the group and at every stage.
#include "engine/split_net_test.h"

namespace nfold::testing {
namespace {

class TensorParallelTraining : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Stages, TensorParallelTraining,
                         ::testing::Values(0, 1, 2, 3));

TEST_P(TensorParallelTraining, OfFiftyStepsIsThatOfOneRankPerBatch) {
  const Axes whole{.data = 2};
  const auto expected = train_split(split_config(GetParam(), whole), whole, 50);
  // It trains, and clipping is part of it.
  EXPECT_LT(expected.losses.back(), expected.losses.front());
  EXPECT_GT(expected.norms.front(), 0.3);
  const Axes split{.data = 2, .tensor = 2};
  expect_near_split(train_split(split_config(GetParam(), split), split, 50),
                    expected, 1e-4);
}

TEST_P(TensorParallelTraining, OverFourRanksAndASequenceGroupIsTheSame) {
  const Axes alone{};
  const auto expected = train_split(split_config(GetParam(), alone), alone, 10);
  for (const Axes& split :
       {Axes{.tensor = 4}, Axes{.sequence = 2, .tensor = 2}}) {
    expect_near_split(train_split(split_config(GetParam(), split), split, 10),
                      expected, 2e-5);
  }
}

TEST(TensorParallelEngine, InBf16ComesNear) {
  const Axes alone{};
  const Axes split{.tensor = 2};
  expect_near_split(train_split(split_config(3, split, kBf16), split, 5),
                    train_split(split_config(3, alone, kBf16), alone, 5), 3e-2);
}

// Stage 3 shards what is left: the rank's part over the data ranks.
TEST(TensorParallelEngine, EachRankHoldsItsShardOfItsPart) {
  const auto params_bytes = [](const Axes& axes) {
    std::int64_t bytes = 0;
    const auto config = split_config(3, axes);
    on_ranks(axes.num_ranks(), config, [&](World& world, Mesh& mesh) {
      Group* tensor = mesh.find("tensor_parallel");
      auto net = init(mesh, config, [&] {
        torch::manual_seed(5);
        return SplitNet(tensor, nullptr);
      });
      Engine engine(net, mesh, config);
      if (world.rank() == 0) bytes = engine.memory().params_bytes;
    });
    return bytes;
  };
  const auto whole = params_bytes({});
  // Norms, places and the biases of row-parallel layers are in every part.
  EXPECT_LT(params_bytes({.tensor = 2}), whole * 6 / 10);
  EXPECT_LT(params_bytes({.data = 2, .tensor = 2}), whole * 4 / 10);
}

// Units of one block have one name; every rank sorts them alike.
TEST(TensorParallelEngine, RanksMayGiveAScopeItsParametersInAnyOrder) {
  const Axes axes{.data = 2, .tensor = 2};
  const auto config = split_config(3, axes);
  on_ranks(4, config, [&](World& world, Mesh& mesh) {
    auto net = init(mesh, config, [&] {
      torch::manual_seed(5);
      return SplitNet(&mesh.tensor_parallel(), nullptr);
    });
    Engine engine(net, mesh, config);
    for (int round = 0; round < 2; ++round) {
      auto params = net->parameters();
      if (world.rank() % 2 == round) std::reverse(params.begin(), params.end());
      const GatheredParameters scope(params);
      EXPECT_TRUE(
          params.front().detach().clone().isfinite().all().item<bool>());
    }
    train_step(engine, net->loss(mesh.data_parallel_rank()));
  });
}

// Rank 0 of each data group sends; what tensor ranks share is the same.
TEST(TensorParallelEngine, InitFromRank0GivesTensorRanksTheSameReplicas) {
  const Axes axes{.data = 2, .tensor = 2};
  const auto config = split_config(3, axes);
  on_ranks(4, config, [&](World& world, Mesh& mesh) {
    auto net =
        init(mesh, config,
             [&] {
               torch::manual_seed(static_cast<std::uint64_t>(world.rank()));
               return SplitNet(&mesh.tensor_parallel(), nullptr);
             },
             {.from_rank_0 = true});
    Engine engine(net, mesh, config);
    const auto places = safe_get_full_fp32_param(engine, net->places->weight);
    auto of_first = places.clone();
    broadcast(mesh.tensor_parallel(), of_first, /*source=*/0).wait();
    EXPECT_TRUE(same_bits(places, of_first));
  });
}

}  // namespace
}  // namespace nfold::testing
