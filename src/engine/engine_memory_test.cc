// Bytes held per rank, from the counters and from torch's allocator.
#include "engine/engine_impl.h"
#include "engine/engine_test.h"
#include "engine/live_bytes_test.h"

namespace nfold::testing {
namespace {

struct MemoryCase {
  int stage;
  int num_ranks;
  bool is_bf16;
};

// Bytes for each of the model's elements that the stage may hold.
double bytes_per_element(const MemoryCase& c) {
  const double n = c.num_ranks;
  if (c.stage == 3) return (c.is_bf16 ? 18 : 16) / n;
  if (c.is_bf16) {
    return c.stage == 0 ? 2 + 4 + 12 : c.stage == 1 ? 6 + 12 / n : 2 + 16 / n;
  }
  return c.stage == 0 ? 16 : c.stage == 1 ? 8 + 8 / n : 4 + 12 / n;
}

std::int64_t held_bytes(const MemoryReport& memory) {
  return memory.params_bytes + memory.grads_bytes + memory.optimizer_bytes;
}

constexpr std::int64_t kWidth = 192;
constexpr std::int64_t kSmallBytes = 64 << 10;  // activations and the like
constexpr std::int64_t kScratchBytes = 4 * kWidth * kWidth;

// At stage 3: nothing stays, and two of the largest units may be whole.
const std::string kTwoUnitsLive =
    R"(, "stage3_param_persistence_threshold": 0,
        "stage3_max_reuse_distance": 0,
        "stage3_max_live_parameters": 74240)";

class EngineMemoryTest : public ::testing::TestWithParam<MemoryCase> {};

TEST_P(EngineMemoryTest, CountersStayInTheBoundAndEqualWhatIsHeld) {
  const auto c = GetParam();
  const auto config =
      config_of({.stage = c.stage,
                 .optimizer = kAdamW,
                 .zero = R"(, "reduce_bucket_size": 1)" + kTwoUnitsLive,
                 .more = c.is_bf16 ? kBf16 : ""});
  on_ranks(
      c.num_ranks, config,
      [&](World& world, Mesh& mesh) {
        const auto counter = std::make_shared<LiveBytes>();
        const c10::DebugInfoGuard guard(c10::DebugInfoKind::PROFILER_STATE,
                                        counter);
        Tower model(kWidth);
        const double numel = static_cast<double>(numel_of(*model));
        Engine engine(model, mesh, config);
        const auto at_rest = held_bytes(engine.memory());
        EXPECT_NEAR(counter->live(), at_rest, 0.02 * at_rest + kSmallBytes)
            << "after construction";

        std::int64_t largest_unit = 0;
        for (const auto* unit : engine.impl().model().trained()) {
          largest_unit = std::max(largest_unit,
                                  unit->layout().numel() * (c.is_bf16 ? 2 : 4));
        }
        for (int step = 0; step < 3; ++step) {
          counter->restart_peak();
          engine.backward(model->loss(step * world.size() + world.rank()));
          const auto memory = engine.memory();
          EXPECT_LE(held_bytes(memory), 1.02 * bytes_per_element(c) * numel);
          EXPECT_NEAR(counter->live(), held_bytes(memory),
                      0.02 * held_bytes(memory) + kSmallBytes)
              << "after backward " << step;
          EXPECT_GT(memory.bucket_peak_bytes, 0);
          EXPECT_LE(memory.bucket_peak_bytes, 2 * largest_unit);
          EXPECT_EQ(memory.gathered_peak_bytes > 0,
                    c.stage == 3 && c.num_ranks > 1);
          EXPECT_LE(memory.gathered_peak_bytes, 2 * largest_unit);
          engine.step();
          // One gradient may be on its way from autograd into its bucket, and
          // oneDNN reorders a weight on processors with bf16 instructions.
          EXPECT_LE(counter->peak(),
                    held_bytes(memory) + memory.bucket_peak_bytes +
                        memory.gathered_peak_bytes + largest_unit +
                        kScratchBytes + kSmallBytes);
          EXPECT_LE(counter->live(), 1.02 * held_bytes(memory) + kSmallBytes)
              << "after step " << step;
        }
        const auto whole = engine.unsharded_memory();
        EXPECT_EQ(held_bytes(whole), numel * (c.is_bf16 ? 18 : 16));
        EXPECT_GT(engine.memory().peak_rss_bytes, 0);
      },
      kOverGloo);
}

std::vector<MemoryCase> memory_cases() {
  std::vector<MemoryCase> cases;
  for (const int stage : {0, 1, 2, 3}) {
    for (const int num_ranks : {1, 2, 3, 4}) {
      for (const bool is_bf16 : {false, true}) {
        cases.push_back({stage, num_ranks, is_bf16});
      }
    }
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Stages, EngineMemoryTest,
                         ::testing::ValuesIn(memory_cases()),
                         [](const ::testing::TestParamInfo<MemoryCase>& info) {
                           return fmt::format(
                               "Stage{}On{}{}", info.param.stage,
                               info.param.num_ranks,
                               info.param.is_bf16 ? "Bf16" : "Fp32");
                         });

TEST(EngineMemory, BucketsOverlapWithinTwoLargestUnits) {
  const auto config =
      config_of({.optimizer = kAdamW, .zero = R"(, "overlap_comm": true)"});
  on_ranks(2, config, [&](World& world, Mesh& mesh) {
    Tower model(kWidth);
    Engine engine(model, mesh, config);
    std::int64_t largest_unit = 0;
    for (const auto* unit : engine.impl().model().trained()) {
      largest_unit = std::max(largest_unit, unit->params_bytes());
    }
    for (int step = 0; step < 3; ++step) {
      train_step(engine, model->loss(step + world.rank()));
    }
    EXPECT_LE(engine.memory().bucket_peak_bytes, 2 * largest_unit);
  });
}

TEST(EngineMemory, FrozenParametersHaveNeitherGradientNorState) {
  const auto config = config_of({.optimizer = kAdamW});
  on_ranks(2, config, [&](World& world, Mesh& mesh) {
    Tower model(kWidth, 4);
    for (auto& param : model->blocks->parameters()) {
      param.set_requires_grad(false);
    }
    Engine engine(model, mesh, config);
    train_step(engine, model->loss(world.rank()));
    const auto memory = engine.memory();
    EXPECT_LT(memory.grads_bytes + memory.optimizer_bytes,
              memory.params_bytes / 10);
  });
}

}  // namespace
}  // namespace nfold::testing
