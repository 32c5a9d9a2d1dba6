// File: engine_process_test.h
//
// What tests of engines on ranks that are processes share.
#pragma once

#include <string>
#include <vector>

#include "base/process_memory.h"
#include "engine/engine_test.h"
#include "testing/process_world.h"

namespace nfold::testing {

// Of sanitizers: resident memory says nothing then.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kHasShadowMemory = true;
#else
inline constexpr bool kHasShadowMemory = false;
#endif

// Each layer is a unit. Draws every weight twice; the first values are
// nobody's.
struct LayersImpl : torch::nn::Module {
  LayersImpl(int depth, std::int64_t width) {
    for (int i = 0; i < depth; ++i) {
      layers->push_back(torch::nn::Linear(width, width));
      torch::nn::init::normal_(at(i)->weight);
    }
    register_module("layers", layers);
  }

  std::shared_ptr<torch::nn::LinearImpl> at(int i) const {
    return layers->ptr<torch::nn::LinearImpl>(static_cast<std::size_t>(i));
  }

  // A loss that depends on the seed.
  at::Tensor loss(std::int64_t seed) {
    const auto width = at(0)->options.in_features();
    auto x =
        torch::cos(torch::arange(2 * width) * 0.3 + static_cast<double>(seed))
            .view({2, width})
            .to(at(0)->weight.dtype());
    for (std::size_t i = 0; i < layers->size(); ++i) {
      x = torch::tanh(at(static_cast<int>(i))->forward(x) / 32);
    }
    return x.to(at::kFloat).square().mean();
  }

  torch::nn::ModuleList layers;
};
TORCH_MODULE(Layers);

struct Job {
  explicit Job(Config with = config_of(
                   {.stage = 3,
                    .zero = R"(, "stage3_param_persistence_threshold": 0)"}))
      : config(std::move(with)), mesh(world, config) {}

  World world = World::from_environment();
  Config config;
  Mesh mesh;
};

inline std::vector<RankResult> run_processes(const char* body, int num_ranks) {
  return ProcessWorld(body, num_ranks).wait();
}

inline void expect_success(const std::vector<RankResult>& ranks) {
  for (const auto& rank : ranks) EXPECT_EQ(rank.exit_code, 0) << rank.output;
}

}  // namespace nfold::testing
