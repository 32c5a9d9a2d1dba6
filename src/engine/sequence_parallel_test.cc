// Sequences split over a sequence group under the engine: the same training
// for every size of the group and at every stage.
#include "engine/split_net_test.h"

namespace nfold::testing {
namespace {

class SequenceParallelTraining : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Stages, SequenceParallelTraining,
                         ::testing::Values(0, 1, 2, 3));

TEST_P(SequenceParallelTraining, OfFiftyStepsIsThatOfOneRankPerBatch) {
  const Axes whole{.data = 2};
  const auto expected = train_split(split_config(GetParam(), whole), whole, 50);
  const Axes split{.data = 2, .sequence = 2};
  expect_near_split(train_split(split_config(GetParam(), split), split, 50),
                    expected, 1e-4);
}

TEST_P(SequenceParallelTraining, OverFourRanksIsTheSame) {
  const Axes alone{};
  const Axes split{.sequence = 4};
  expect_near_split(train_split(split_config(GetParam(), split), split, 10),
                    train_split(split_config(GetParam(), alone), alone, 10),
                    2e-5);
}

// Behaviour of DeepSpeed: gradients travel in fp32 unless told otherwise.
TEST(SequenceParallelEngine, GradientsTravelInTheirOwnDtype) {
  const auto reduced_bytes = [](int stage, const std::string& more) {
    const Axes axes{.sequence = 2};
    const auto config = split_config(stage, axes, kBf16 + more);
    std::int64_t bytes = 0;
    on_ranks(2, config, [&](World& world, Mesh& mesh) {
      auto net = init(mesh, config, [&] {
        torch::manual_seed(5);
        return SplitNet(nullptr, &mesh.sequence_parallel());
      });
      Engine engine(net, mesh, config);
      const auto report = train_step(engine, net->loss(1));
      const auto kind =
          stage == 0 ? Collective::kAllReduce : Collective::kReduceScatter;
      if (world.rank() == 0) {
        bytes = report.comm[static_cast<std::size_t>(kind)].bytes;
      }
    });
    return bytes;
  };
  const auto in_fp32 = reduced_bytes(2, "");
  EXPECT_GT(in_fp32, 0);
  EXPECT_EQ(in_fp32, 2 * reduced_bytes(2, R"(,
      "seq_parallel_communication_data_type": "bf16")"));
  // An all-reduce is fp32 too, and twice a reduce-scatter. The loss adds a few.
  const auto all_reduced = reduced_bytes(0, "");
  EXPECT_GE(all_reduced, 2 * in_fp32);
  EXPECT_LT(all_reduced, 2 * in_fp32 + in_fp32 / 10);
}

TEST(SequenceParallelEngine, ShardGroupsTrainAsAllRanksDo) {
  const Axes axes{.data = 2, .sequence = 2};
  const auto whole = split_config(3, axes);
  auto mics = whole;
  mics.zero_optimization.mics_shard_size = 2;
  expect_near_split(train_split(mics, axes, 10), train_split(whole, axes, 10),
                    2e-5);
}

}  // namespace
}  // namespace nfold::testing
