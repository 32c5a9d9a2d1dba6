// Resident memory of training at stage 3, in processes.
#include "engine/engine_process_test.h"

namespace nfold::testing {
namespace {

constexpr int kNumLayers = 24;
constexpr std::int64_t kLayerWidth = 1024;
constexpr std::int64_t kUnitNumel = kLayerWidth * (kLayerWidth + 1);
constexpr std::int64_t kLayersNumel = kNumLayers * kUnitNumel;

// At most two of the largest units live and two in gradient buckets.
void expect_bound(double bytes_per_element, std::int64_t param_bytes,
                  const std::string& more) {
  at::set_num_threads(1);
  Job job(config_of({.stage = 3,
                     .optimizer = kAdamW,
                     .zero = fmt::format(
                         R"(, "stage3_param_persistence_threshold": 0,
                             "stage3_max_reuse_distance": 0,
                             "stage3_max_live_parameters": {},
                             "reduce_bucket_size": {})",
                         2 * kUnitNumel + 64, kUnitNumel),
                     .more = more}));
  const auto train = [&](Layers& model, int num_steps) {
    Engine engine(model, job.mesh, job.config);
    for (int step = 0; step < num_steps; ++step) {
      train_step(engine, model->loss(step + job.world.rank()));
    }
  };
  // What autograd, the matrix kernels and sending need once.
  auto small = init(job.mesh, job.config, [] { return Layers(3, 192); });
  train(small, 2);
  release_host_cache();
  reset_peak_rss();
  const auto before = process_memory().rss_bytes;
  auto model = init(job.mesh, job.config,
                    [] { return Layers(kNumLayers, kLayerWidth); });
  train(model, 4);
  if (kHasShadowMemory) return;
  const auto peak = process_memory().peak_rss_bytes - before;
  const auto state =
      static_cast<double>(kLayersNumel) * bytes_per_element / job.world.size();
  const auto buckets = 2 * kUnitNumel * param_bytes;
  // Whole units; where ranks share memory the parts of the others, which the
  // system counts as resident in every process that looks at them.
  const bool is_shared =
      job.mesh.shard_group().transport() == std::string_view("shm");
  const auto live = is_shared ? kLayersNumel * param_bytes *
                                    (job.world.size() - 1) / job.world.size()
                              : 2 * kUnitNumel * param_bytes;
  constexpr double kBareBytes = 16 << 20;  // staging, graph, whole pages
  EXPECT_LE(static_cast<double>(peak),
            1.02 * state + static_cast<double>(buckets + live) + kBareBytes);
  EXPECT_GE(static_cast<double>(peak), state) << "the model was trained";
}

const ProcessBody kTrainsInFp32("TrainsInFp32",
                                [] { expect_bound(16, 4, ""); });
const ProcessBody kTrainsInBf16("TrainsInBf16",
                                [] { expect_bound(18, 2, kBf16); });

TEST(EngineMemoryProcessTest, StateIsShardedAndWholeUnitsAreFew) {
  for (const int num_ranks : {2, 3}) {
    expect_success(run_processes("TrainsInFp32", num_ranks));
  }
}

TEST(EngineMemoryProcessTest, TheSameInBf16WithMasterWeights) {
  expect_success(run_processes("TrainsInBf16", 2));
}

}  // namespace
}  // namespace nfold::testing
