// What a training that goes on takes from the system: nothing. In processes,
// whose page faults and resident memory are their own.
#include <fmt/ranges.h>
#include <malloc.h>
#include <sys/resource.h>

#include <algorithm>
#include <tuple>

#include "engine/engine_process_test.h"

namespace nfold::testing {
namespace {

constexpr int kNumLayers = 4;

// Activations of 51 KiB, 74 KiB and 302 KiB: the C library serves the small
// ones and the cache the large ones.
struct MixedImpl : torch::nn::Module {
  static constexpr std::int64_t kRows = 193;
  static constexpr std::int64_t kWidth = 97;
  static constexpr std::int64_t kInner = 401;
  static constexpr std::int64_t kClasses = 67;

  MixedImpl() {
    for (int i = 0; i < kNumLayers; ++i) {
      blocks->push_back(
          torch::nn::Sequential(torch::nn::Linear(kWidth, kInner),
                                torch::nn::Linear(kInner, kWidth)));
    }
    register_module("blocks", blocks);
    head = register_module("head", torch::nn::Linear(kWidth, kClasses));
  }

  at::Tensor loss(std::int64_t seed) {
    auto x =
        torch::cos(torch::arange(kRows * kWidth) + static_cast<double>(seed))
            .view({kRows, kWidth});
    for (const auto& block : *blocks) {
      auto& layers = *block->as<torch::nn::Sequential>();
      const auto inner =
          torch::tanh(layers[0]->as<torch::nn::Linear>()->forward(x));
      x = x + layers[1]->as<torch::nn::Linear>()->forward(inner);
    }
    return head(x).square().mean();
  }

  torch::nn::ModuleList blocks;
  torch::nn::Linear head{nullptr};
};
TORCH_MODULE(Mixed);

Config training_config(int stage) {
  return config_of({.stage = stage,
                    .optimizer = kAdamW,
                    .zero = stage == 3
                                ? R"(, "stage3_param_persistence_threshold": 0)"
                                : ""});
}

std::int64_t page_faults() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  return usage.ru_minflt + usage.ru_majflt;
}

template <typename Model>
void run_steps(Engine& engine, Model& model, int num_steps, int rank) {
  for (int step = 0; step < num_steps; ++step) {
    train_step(engine, model->loss(10 * step + rank));
  }
}

// In the best of some windows: a heap still moves about now and then, and the
// kernel faults pages in when it moves them. What a step does, it does in each.
void expect_no_page_faults(int stage) {
  constexpr int kWarmUp = 50;
  constexpr int kWindow = 50;
  constexpr int kNumWindows = 6;
  at::set_num_threads(1);
  Job job(training_config(stage));
  torch::manual_seed(1);
  Mixed model;
  Engine engine(model, job.mesh, job.config);
  run_steps(engine, model, kWarmUp, job.world.rank());
  EXPECT_GT(host_memory_stats().reused, 0) << "the cache is in use";
  const auto fresh = host_memory_stats().fresh;
  std::vector<std::int64_t> faults;
  for (int window = 0; window < kNumWindows; ++window) {
    const auto before = page_faults();
    run_steps(engine, model, kWindow, job.world.rank());
    faults.push_back(page_faults() - before);
  }
  EXPECT_EQ(*std::min_element(faults.begin(), faults.end()), 0) << fmt::format(
      "page faults of {} steps each: {}", kWindow, fmt::join(faults, ", "));
  EXPECT_EQ(host_memory_stats().fresh, fresh);
}

struct Held {
  std::int64_t resident_bytes = process_memory().rss_bytes;
  std::int64_t heap_bytes = static_cast<std::int64_t>(::mallinfo2().uordblks);
  HostMemoryStats cache = host_memory_stats();
};

// Of all that a step might leave behind.
void expect_no_growth(int stage) {
  at::set_num_threads(1);
  Job job(training_config(stage));
  torch::manual_seed(1);
  // A gradient bucket of it is just large enough for the cache.
  Tower model(260, /*depth=*/2);
  Engine engine(model, job.mesh, job.config);
  run_steps(engine, model, 100, job.world.rank());
  const Held before;
  run_steps(engine, model, 900, job.world.rank());
  const Held after;
  EXPECT_EQ(engine.steps(), 1000);
  EXPECT_GT(after.cache.reused, before.cache.reused);
  EXPECT_EQ(after.cache.fresh, before.cache.fresh);
  EXPECT_EQ(after.cache.resident_bytes, before.cache.resident_bytes);
  // Less than 32 bytes a step: pages and texts that come once in a while.
  constexpr std::int64_t kOnceBytes = 900 * 32;
  EXPECT_LT(after.heap_bytes, before.heap_bytes + kOnceBytes);
  // One huge page: the kernel may make one of small ones at any time.
  constexpr std::int64_t kHugePageBytes = std::int64_t{2} << 20;
  EXPECT_LE(after.resident_bytes, before.resident_bytes + kHugePageBytes);
}

const ProcessBody kFaultsAtStage2("FaultsAtStage2",
                                  [] { expect_no_page_faults(2); });
const ProcessBody kFaultsAtStage3("FaultsAtStage3",
                                  [] { expect_no_page_faults(3); });
const ProcessBody kGrowsAtStage2("GrowsAtStage2", [] { expect_no_growth(2); });
const ProcessBody kGrowsAtStage3("GrowsAtStage3", [] { expect_no_growth(3); });

class SteadyStep : public ::testing::TestWithParam<std::tuple<int, int>> {
 protected:
  void SetUp() override {
    if (kHasShadowMemory) GTEST_SKIP() << "a sanitizer has memory of its own";
  }

  // Of the rank's own process: `what` at the stage and on the ranks of this
  // test.
  static void expect_of_ranks(const std::string& what) {
    const auto [num_ranks, stage] = GetParam();
    ProcessWorld ranks(fmt::format("{}AtStage{}", what, stage), num_ranks,
                       {.environment = {{"NFOLD_TRANSPORT", "shm"}}});
    expect_success(ranks.wait());
  }
};

INSTANTIATE_TEST_SUITE_P(With, SteadyStep,
                         ::testing::Combine(::testing::Values(1, 2),
                                            ::testing::Values(2, 3)),
                         [](const auto& info) {
                           return fmt::format("{}RanksAtStage{}",
                                              std::get<0>(info.param),
                                              std::get<1>(info.param));
                         });

TEST_P(SteadyStep, FaultsInNoPage) { expect_of_ranks("Faults"); }

TEST_P(SteadyStep, LeavesNothingBehindInAThousand) { expect_of_ranks("Grows"); }

}  // namespace
}  // namespace nfold::testing
