// nfold::init on ranks that are processes: what each really holds, scopes that
// communicate while the module is built, a rank that dies meanwhile.
#include <cstdlib>

#include "engine/engine_process_test.h"

namespace nfold::testing {
namespace {

using ::testing::ContainsRegex;

const ProcessBody kHoldsShards("HoldsShards", [] {
  constexpr int kDepth = 16;
  constexpr std::int64_t kWidth = 2048;
  constexpr std::int64_t kLayerBytes = kWidth * kWidth * 4;  // 16 MiB
  constexpr std::int64_t kBareBytes = 12 << 20;  // libraries wake up
  at::set_num_threads(1);
  Job job;
  // What drawing and sending need once is no part of the model.
  init(job.mesh, job.config, [] { return Layers(1, 64); });
  reset_peak_rss();
  const auto before = process_memory().rss_bytes;
  const auto model =
      init(job.mesh, job.config, [&] { return Layers(kDepth, kWidth); });
  const auto after = process_memory();
  const auto shards = kDepth * kLayerBytes / job.world.size();
  EXPECT_GE(after.rss_bytes - before, shards * 9 / 10);
  if (kHasShadowMemory) return;
  EXPECT_LE(after.peak_rss_bytes - before,
            shards + 2 * kLayerBytes + kBareBytes);
});

TEST(InitProcessTest, ResidentMemoryPeaksAtTheShardsAndOneParameter) {
  expect_success(run_processes("HoldsShards", 2));
  expect_success(run_processes("HoldsShards", 4));
}

const ProcessBody kWritesWhileBuilding("WritesWhileBuilding", [] {
  Job job;
  const auto rank = job.world.rank();
  const int modifier = job.world.size() - 1;
  const auto model = init(job.mesh, job.config, [&] {
    torch::manual_seed(7);
    Layers layers(3, 80);
    const GatheredParameters scope({layers->at(1)->weight, layers->at(2)->bias},
                                   {.modifier_rank = modifier});
    auto* data = layers->at(1)->weight.mutable_data_ptr<float>();
    for (int i = 0; i < 6400; ++i) data[i] = static_cast<float>(i * rank);
    return layers;
  });
  torch::manual_seed(7);
  Layers expected(3, 80);
  const GatheredParameters scope(model->parameters());
  for (const auto& param : expected->named_parameters()) {
    const auto value =
        param.key() == "layers.1.weight"
            ? (torch::arange(6400, at::kFloat) * modifier).view({80, 80})
            : param.value();
    EXPECT_TRUE(same_bits(model->named_parameters()[param.key()], value))
        << param.key();
  }
});

TEST(InitProcessTest, AScopeInsideTheFunctionTakesTheModifiersValues) {
  for (const int num_ranks : {2, 3}) {
    expect_success(run_processes("WritesWhileBuilding", num_ranks));
  }
}

const ProcessBody kDiesWhileBuilding("DiesWhileBuilding", [] {
  Job job;
  init(job.mesh, job.config, [&] {
    if (job.world.rank() == 1) std::_Exit(9);
    return Layers(3, 80);
  });
});

TEST(InitProcessTest, ARankThatDiesIsNamedByTheOthers) {
  const auto ranks = run_processes("DiesWhileBuilding", 3);
  EXPECT_EQ(ranks[1].exit_code, 9);
  for (const int rank : {0, 2}) {
    const auto& result = ranks[static_cast<std::size_t>(rank)];
    EXPECT_EQ(result.exit_code, 1);
    EXPECT_FALSE(result.is_late);
    EXPECT_THAT(result.output,
                AllOf(HasSubstr("lost the connection"), HasSubstr("rank 1")));
  }
}

}  // namespace
}  // namespace nfold::testing
