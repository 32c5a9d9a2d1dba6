// File: fetcher_test.h
//
// What the fetcher's tests share: layers under a fetcher, and a twin of them in
// plain torch.
#pragma once

#include <fmt/format.h>
#include <torch/torch.h>

#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "fetch/dispatch_interceptor.h"
#include "fetch/fetch_test.h"
#include "fetch/fetcher.h"
#include "testing/thread_world.h"

namespace nfold::testing {

using Order = std::vector<std::size_t>;  // of layers

inline constexpr std::int64_t kWidth = 12;

struct Layer {
  at::Tensor weight, bias;
};

// Linear layers, one unit each, "layer0", "layer1", ..., under a fetcher; and
// a twin that is not sharded.
class FetchedLayers {
 public:
  FetchedLayers(World& world, std::size_t num_layers,
                const FetcherOptions& options = {})
      : world_(world) {
    for (std::size_t i = 0; i < num_layers; ++i) add_layer(i);
    fetcher_.emplace(world.group(), pointers, options, dispatch_interceptor());
  }

  Fetcher& fetcher() { return *fetcher_; }
  void stop() { fetcher_.reset(); }
  std::int64_t bytes() const { return units.front()->full_bytes(); }
  Order forward_order() const {
    Order order(layers.size());
    std::iota(order.begin(), order.end(), 0);
    return order;
  }

  at::Tensor loss(const std::vector<Layer>& with, const Order& order) const {
    // Its gradient makes backward use the first layer's weight too.
    auto x = trained_values({2, kWidth}, world_.rank());
    for (const auto i : order) {
      x = torch::tanh(at::linear(x, with[i].weight, with[i].bias));
    }
    return x.square().sum();
  }

  // A step of training like the twin's: then all weights are halved.
  void step(const Order& order) {
    fetcher_->set_position(fmt::format("step {}", ++num_steps_));
    const auto loss_of_layers = loss(layers, order);
    {
      const Fetcher::BackwardScope scope(*fetcher_);
      loss_of_layers.backward();
    }
    fetcher_->end_step();
    for (const auto& unit : units) {
      EXPECT_EQ(unit->state(), UnitState::kSharded);
    }
    const auto loss_of_twins = loss(twins, order);
    loss_of_twins.backward();
    expect_same_bits(loss_of_layers, loss_of_twins);
    for (const auto i : order) {
      expect_same_bits(layers[i].weight.grad(), twins[i].weight.grad());
      expect_same_bits(layers[i].bias.grad(), twins[i].bias.grad());
    }
    update();
  }
  void step() { step(forward_order()); }

  // Gathers of one more step.
  FetchCounts counts_of_step(const Order& order) {
    const auto before = fetcher_->counts();
    step(order);
    auto counts = fetcher_->counts();
    counts.gathers -= before.gathers;
    counts.prefetched -= before.prefetched;
    counts.misses -= before.misses;
    return counts;
  }
  FetchCounts counts_of_step() { return counts_of_step(forward_order()); }

  std::vector<Layer> layers;
  std::vector<Layer> twins;
  std::vector<std::unique_ptr<ShardedUnit>> units;
  std::vector<ShardedUnit*> pointers;

 private:
  void add_layer(std::size_t i) {
    const auto phase = static_cast<double>(i);
    const auto make = [&] {
      return Layer{trained_values({kWidth, kWidth}, phase),
                   trained_values({kWidth}, phase + 0.5)};
    };
    layers.push_back(make());
    twins.push_back(make());
    const auto options = testing::watched_options(
        world_, fmt::format("layer{}", i), layers[i].weight);
    const auto weight = options.name + ".weight", bias = options.name + ".bias";
    units.push_back(std::make_unique<ShardedUnit>(
        std::vector<ParamState>{{weight, {weight}, {layers[i].weight}},
                                {bias, {bias}, {layers[i].bias}}},
        options));
    pointers.push_back(units.back().get());
  }

  // Exact in any order, and old values would show.
  void update() {
    const torch::NoGradGuard no_grad;
    for (auto& unit : units) {
      unit->owned().mul_(0.5);
      unit->publish_shard();
    }
    for (auto* side : {&layers, &twins}) {
      for (auto& layer : *side) {
        for (auto* param : {&layer.weight, &layer.bias}) {
          if (side == &twins) param->mul_(0.5);
          param->mutable_grad().reset();
        }
      }
    }
  }

  World& world_;
  int num_steps_ = 0;
  std::optional<Fetcher> fetcher_;  // goes before the units
};

inline FetcherOptions with_limits(std::int64_t live, std::int64_t prefetch,
                                  std::int64_t reuse) {
  FetcherOptions options;
  options.plan = {.max_live_numel = live,
                  .prefetch_numel = prefetch,
                  .max_reuse_numel = reuse};
  return options;
}

inline constexpr std::int64_t kNoLimit = 1'000'000;

// Elements of one unit of FetchedLayers.
inline std::int64_t layer_numel(int num_ranks) {
  return make_unit_layout({kWidth * kWidth, kWidth}, sizeof(float), num_ranks)
      .numel();
}

inline std::int64_t calls_of(World& world, Collective kind) {
  return world.group().counts()[static_cast<std::size_t>(kind)].calls;
}

}  // namespace nfold::testing
