#include "fetch/fetcher.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <atomic>
#include <numeric>
#include <optional>
#include <thread>

#include "fetch/dispatch_interceptor.h"
#include "fetch/fetch_test.h"
#include "testing/raised_text.h"
#include "testing/thread_world.h"

namespace nfold {
namespace {

using ::testing::AllOf;
using testing::expect_same_bits;
using ::testing::HasSubstr;
using ::testing::Not;
using testing::trained_values;

using Order = std::vector<std::size_t>;  // of layers

constexpr std::int64_t kWidth = 12;

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

FetcherOptions with_limits(std::int64_t live, std::int64_t prefetch,
                           std::int64_t reuse) {
  FetcherOptions options;
  options.plan = {.max_live_numel = live,
                  .prefetch_numel = prefetch,
                  .max_reuse_numel = reuse};
  return options;
}

constexpr std::int64_t kNoLimit = 1'000'000;

// Elements of one unit of FetchedLayers.
std::int64_t layer_numel(int num_ranks) {
  return make_unit_layout({kWidth * kWidth, kWidth}, sizeof(float), num_ranks)
      .numel();
}

std::int64_t calls_of(World& world, Collective kind) {
  return world.group().counts()[static_cast<std::size_t>(kind)].calls;
}

TEST(FetcherTest, TheFirstStepGathersOnDemandAndLaterOnesAhead) {
  for (const int num_ranks : {1, 2, 3, 4}) {
    run_ranks(num_ranks, [](World& world) {
      FetchedLayers model(world, 4);
      auto counts = model.counts_of_step();
      EXPECT_EQ(counts.gathers, 4);
      EXPECT_EQ(counts.prefetched, 0);
      EXPECT_EQ(calls_of(world, Collective::kAllGather), 4);
      for (int step = 1; step <= 3; ++step) {
        counts = model.counts_of_step();
        EXPECT_EQ(counts.gathers, 4);
        EXPECT_EQ(counts.prefetched, 3);
        // The first layer, and all others in one collective.
        EXPECT_EQ(calls_of(world, Collective::kAllGather), 4 + 2 * step);
      }
      EXPECT_EQ(model.fetcher().counts().misses, 0);
      EXPECT_EQ(model.fetcher().counts().peak_bytes, 4 * model.bytes());
    });
  }
}

TEST(FetcherTest, TheLiveBudgetHoldsInEveryStep) {
  for (const int num_ranks : {1, 2, 3}) {
    const auto numel = layer_numel(num_ranks);
    run_ranks(num_ranks, [numel](World& world) {
      FetchedLayers model(world, 6, with_limits(3 * numel, numel, kNoLimit));
      for (int step = 0; step < 4; ++step) {
        model.fetcher().reset_peak();
        const auto counts = model.counts_of_step();
        EXPECT_EQ(counts.peak_bytes, 3 * model.bytes());
        EXPECT_EQ(counts.misses, 0);
        // Three of six layers are whole still when backward begins.
        EXPECT_EQ(counts.gathers, 6 + 3);
        EXPECT_EQ(counts.prefetched, step == 0 ? 0 : 6 + 3 - 1);
      }
    });
  }
}

TEST(FetcherTest, ABudgetOfOneUnitWorksWithoutPrefetching) {
  const auto numel = layer_numel(2);
  run_ranks(2, [numel](World& world) {
    FetchedLayers model(world, 4, with_limits(numel, kNoLimit, kNoLimit));
    for (int step = 0; step < 3; ++step) {
      const auto counts = model.counts_of_step();
      EXPECT_EQ(counts.peak_bytes, model.bytes());
      EXPECT_EQ(counts.gathers, 4 + 3);
      EXPECT_EQ(counts.prefetched, 0);
      EXPECT_EQ(counts.misses, 0);
    }
  });
}

TEST(FetcherTest, WithoutReuseEachUseGathers) {
  for (const int num_ranks : {1, 2}) {
    const auto numel = layer_numel(num_ranks);
    run_ranks(num_ranks, [numel](World& world) {
      FetchedLayers model(world, 4, with_limits(kNoLimit, numel, 0));
      for (int step = 0; step < 4; ++step) {
        model.fetcher().reset_peak();
        const auto counts = model.counts_of_step();
        EXPECT_EQ(counts.gathers, 2 * 4);
        EXPECT_EQ(counts.misses, 0);
        // The first of forward and of backward are on demand.
        EXPECT_EQ(counts.prefetched, step == 0 ? 0 : 2 * 4 - 2);
        EXPECT_EQ(counts.peak_bytes, (step == 0 ? 1 : 2) * model.bytes());
      }
    });
  }
}

TEST(FetcherTest, AReuseDistanceKeepsWhatIsUsedAgainSoon) {
  const auto numel = layer_numel(2);
  run_ranks(2, [numel](World& world) {
    // Backward reaches the last two layers within one layer's elements.
    FetchedLayers model(world, 4, with_limits(kNoLimit, 0, numel));
    model.step();
    EXPECT_EQ(model.counts_of_step().gathers, 4 + 2);
  });
}

TEST(FetcherTest, LayersMayBeUsedAgainInOneForward) {
  run_ranks(2, [](World& world) {
    const auto numel = layer_numel(2);
    for (const auto reuse : {std::int64_t{0}, numel, kNoLimit}) {
      FetchedLayers model(world, 3, with_limits(2 * numel, numel, reuse));
      for (int step = 0; step < 4; ++step) {
        EXPECT_EQ(model.counts_of_step({0, 1, 0, 2, 2, 1}).misses, 0);
      }
    }
  });
}

TEST(FetcherTest, MicroStepsAreOneTrace) {
  run_ranks(2, [](World& world) {
    const auto numel = layer_numel(2);
    FetchedLayers model(world, 3, with_limits(2 * numel, numel, kNoLimit));
    for (int step = 0; step < 3; ++step) {
      for (int micro_step = 0; micro_step < 2; ++micro_step) {
        const auto loss = model.loss(model.layers, {0, 1, 2});
        const Fetcher::BackwardScope scope(model.fetcher());
        loss.backward();
      }
      model.fetcher().end_step();
      EXPECT_EQ(model.fetcher().counts().misses, 0);
    }
    // Backward ends, and the next forward begins, with layer 0.
    EXPECT_EQ(model.fetcher().plan().trace,
              (AccessTrace{0, 1, 2, 1, 0, 1, 2, 1, 0}));
    const auto twin_loss = model.loss(model.twins, {0, 1, 2});
    twin_loss.backward();
    EXPECT_TRUE(torch::allclose(model.layers[0].weight.grad(),
                                model.twins[0].weight.grad() * 6));
  });
}

TEST(FetcherTest, EvaluationBetweenStepsDoesNotChangeThePlan) {
  run_ranks(2, [](World& world) {
    const auto numel = layer_numel(2);
    FetchedLayers model(world, 4, with_limits(2 * numel, numel, kNoLimit));
    const auto evaluate = [&](const Order& order) {
      const torch::NoGradGuard no_grad;
      expect_same_bits(model.loss(model.layers, order),
                       model.loss(model.twins, order));
    };
    evaluate({0, 1, 2, 3});
    EXPECT_TRUE(model.fetcher().plan().trace.empty());
    model.step();
    const auto plan = model.fetcher().plan();
    EXPECT_EQ(plan.trace, (AccessTrace{0, 1, 2, 3, 2, 1, 0}));
    for (int step = 0; step < 3; ++step) {
      evaluate({0, 1, 2, 3});
      evaluate({3, 1});
      evaluate({2, 2, 0});
      model.fetcher().release_all();
      model.step();
      EXPECT_EQ(model.fetcher().plan().hash, plan.hash);
      EXPECT_EQ(model.fetcher().plan().trace, plan.trace);
    }
    // Without evaluation nothing has to be made up for.
    EXPECT_EQ(model.counts_of_step().misses, 0);
  });
}

TEST(FetcherTest, ABranchOfEvenStepsOnlyIsFollowed) {
  for (const int num_ranks : {1, 2, 3}) {
    run_ranks(num_ranks, [](World& world) {
      const auto numel = layer_numel(world.size());
      for (const auto reuse : {std::int64_t{0}, kNoLimit}) {
        FetchedLayers model(world, 5, with_limits(3 * numel, numel, reuse));
        for (int step = 0; step < 8; ++step) {
          const auto counts = model.counts_of_step(
              step % 2 == 0 ? Order{0, 1, 2, 3, 4} : Order{0, 3, 4});
          EXPECT_LE(counts.peak_bytes, 3 * model.bytes());
        }
      }
    });
  }
}

TEST(FetcherTest, ADeviationCostsMissesOnceAndThenIsPlanned) {
  run_ranks(2, [](World& world) {
    const auto numel = layer_numel(2);
    FetchedLayers model(world, 4, with_limits(2 * numel, numel, kNoLimit));
    model.step();
    EXPECT_EQ(model.counts_of_step().misses, 0);
    EXPECT_GT(model.counts_of_step({3, 2, 1, 0}).misses, 0);
    EXPECT_EQ(model.counts_of_step({3, 2, 1, 0}).misses, 0);
    model.step({0, 1});
    // A layer that the plan does not know.
    EXPECT_GT(model.counts_of_step({0, 2, 1}).misses, 0);
    EXPECT_EQ(model.counts_of_step({0, 2, 1}).misses, 0);
  });
}

// Raised on every rank when rank 0 and the others use these layers.
void expect_divergence(
    int num_ranks, FetcherOptions options,
    const std::function<at::Tensor(FetchedLayers&, Order)>& use) {
  run_ranks(num_ranks, [&](World& world) {
    FetchedLayers model(world, 2, options);
    model.step();
    model.fetcher().set_position("step 7");
    const Order order = world.rank() == 0 ? Order{0, 1} : Order{1, 0};
    EXPECT_THAT(
        text_of<c10::DistBackendError>([&] { use(model, order); }),
        AllOf(HasSubstr("step 7"),
              HasSubstr(fmt::format("layer{}", world.rank() == 0 ? 0 : 1))));
    // Nothing is in use any more.
    EXPECT_NO_THROW(model.fetcher().check_idle("a test"));
  });
}

TEST(FetcherTest, RanksThatUseDifferentUnitsRaiseOnEveryRank) {
  for (const int num_ranks : {2, 3}) {
    for (const auto reuse : {std::int64_t{0}, kNoLimit}) {
      expect_divergence(num_ranks, with_limits(kNoLimit, 0, reuse),
                        [](FetchedLayers& model, const Order& order) {
                          return model.loss(model.layers, order);
                        });
    }
  }
}

TEST(FetcherTest, RanksThatDivergeInBackwardRaiseToo) {
  for (const auto reuse : {std::int64_t{0}, kNoLimit}) {
    expect_divergence(2, with_limits(kNoLimit, 0, reuse),
                      [](FetchedLayers& model, const Order& order) {
                        const Fetcher::BackwardScope scope(model.fetcher());
                        return model.layers[order[0]].weight + 1;
                      });
  }
}

TEST(FetcherTest, RanksWithDifferentPlansRaise) {
  run_ranks(2, [](World& world) {
    FetchedLayers model(world, 2);
    // Alike as far as gathers go, but not in what follows from them.
    model.step(world.rank() == 0 ? Order{0, 1} : Order{0, 1, 0});
    EXPECT_THAT(
        text_of<c10::DistBackendError>([&] { model.loss(model.layers, {0}); }),
        AllOf(HasSubstr("step 1"), HasSubstr("layer0")));
  });
}

TEST(FetcherTest, ALiveBudgetBelowTheLargestUnitIsRaisedToIt) {
  run_ranks(2, [](World& world) {
    FetchedLayers model(world, 3, with_limits(1, kNoLimit, kNoLimit));
    for (int step = 0; step < 3; ++step) {
      EXPECT_EQ(model.counts_of_step().peak_bytes, model.bytes());
    }
  });
}

TEST(FetcherTest, NegativeLimitsAreErrors) {
  run_ranks(1, [](World& world) {
    for (const auto& options : {with_limits(-1, 0, 0), with_limits(0, -1, 0),
                                with_limits(0, 0, -1)}) {
      EXPECT_THAT(
          text_of<c10::ValueError>([&] { FetchedLayers(world, 1, options); }),
          AllOf(HasSubstr("stage3_max_live_parameters"), HasSubstr("-1")));
    }
  });
}

TEST(FetcherTest, SequentialModeGathersOneUnitAtATime) {
  run_ranks(2, [](World& world) {
    FetcherOptions options;
    options.is_sequential = true;
    FetchedLayers model(world, 4, options);
    for (int step = 1; step <= 3; ++step) {
      EXPECT_EQ(model.counts_of_step().prefetched, 0);
      EXPECT_EQ(calls_of(world, Collective::kAllGather), 4 * step);
    }
  });
}

TEST(FetcherTest, AllReduceModeGivesTheSameValues) {
  for (const int num_ranks : {2, 3}) {
    run_ranks(num_ranks, [](World& world) {
      const auto numel = layer_numel(world.size());
      auto options = with_limits(2 * numel, numel, kNoLimit);
      options.gather_mode = GatherMode::kAllReduce;
      FetchedLayers model(world, 4, options);
      for (int step = 0; step < 3; ++step) model.step();
      EXPECT_EQ(calls_of(world, Collective::kAllReduce),
                model.fetcher().counts().gathers);
      EXPECT_EQ(calls_of(world, Collective::kAllGather), 0);
    });
  }
}

TEST(FetcherTest, CheckIdleNamesWhatIsInUse) {
  run_ranks(2, [](World& world) {
    FetchedLayers model(world, 2);
    model.fetcher().set_position("step 3");
    EXPECT_NO_THROW(model.fetcher().check_idle("Engine::step"));
    {
      const AccessPin pin(model.fetcher(), {model.pointers[1]});
      EXPECT_THAT(
          text_of<c10::ValueError>(
              [&] { model.fetcher().check_idle("Engine::step"); }),
          AllOf(HasSubstr(fmt::format("[rank {}] step 3", world.rank())),
                HasSubstr("Engine::step"), HasSubstr("layer1"),
                Not(HasSubstr("layer0"))));
    }
    EXPECT_NO_THROW(model.fetcher().check_idle("Engine::step"));
  });
}

TEST(FetcherTest, WhereTellsRankAndPosition) {
  run_ranks(2, [](World& world) {
    FetchedLayers model(world, 1);
    EXPECT_EQ(model.fetcher().where(),
              fmt::format("[rank {}] before the first step", world.rank()));
    model.fetcher().set_position("step 3, backward");
    EXPECT_EQ(model.fetcher().where(),
              fmt::format("[rank {}] step 3, backward", world.rank()));
    EXPECT_EQ(&model.fetcher().group(), &world.group());
  });
}

TEST(FetcherTest, WhatIsPinnedStaysWholeUntilTheLastPinGoes) {
  run_ranks(2, [](World& world) {
    const auto numel = layer_numel(2);
    FetchedLayers model(world, 3, with_limits(numel, 0, 0));
    const auto& unit = *model.units[0];
    {
      const AccessPin outer(model.fetcher(), {model.pointers[0]});
      {
        const AccessPin inner(model.fetcher(), {model.pointers[0]});
        EXPECT_EQ(unit.state(), UnitState::kUnsharded);
      }
      model.loss(model.layers, {0, 1, 2, 0});
      model.fetcher().release_all();
      model.fetcher().end_step();
      EXPECT_EQ(unit.state(), UnitState::kUnsharded);
      EXPECT_EQ(model.units[2]->state(), UnitState::kSharded);
      EXPECT_EQ(model.fetcher().counts().gathers, 3);
    }
    model.fetcher().release_all();
    EXPECT_EQ(unit.state(), UnitState::kSharded);
  });
}

TEST(FetcherTest, UnitsThatWerePinnedWhenTheirTimeWasUpAreReleasedLater) {
  run_ranks(2, [](World& world) {
    FetchedLayers model(world, 4, with_limits(kNoLimit, 0, 0));
    // Layers 0 and 1 in one operator, then the others.
    const auto use = [&] {
      torch::cat({model.layers[0].weight, model.layers[1].weight});
      model.layers[2].weight + 1;
      model.layers[3].weight + 1;
      EXPECT_EQ(model.units[0]->state(), UnitState::kSharded);
      EXPECT_EQ(model.units[1]->state(), UnitState::kSharded);
      EXPECT_EQ(model.units[2]->state(), UnitState::kSharded);
    };
    for (int step = 0; step < 3; ++step) {
      model.fetcher().reset_peak();
      use();
      model.fetcher().end_step();
      EXPECT_EQ(model.fetcher().counts().peak_bytes, 2 * model.bytes());
    }
  });
}

TEST(FetcherTest, DiscardDropsWhatWasWrittenMeanwhile) {
  run_ranks(2, [](World& world) {
    FetchedLayers model(world, 2);
    auto& fetcher = model.fetcher();
    const std::vector<ShardedUnit*> units{model.pointers[0]};
    {
      const AccessPin pin(fetcher, units);
      units[0]->full().fill_(42);
      fetcher.discard(units);  // in use: not yet
      EXPECT_EQ(model.layers[0].bias[0].item<float>(), 42);
    }
    fetcher.discard(units);
    EXPECT_EQ(units[0]->state(), UnitState::kSharded);
    expect_same_bits(model.layers[0].bias * 1, model.twins[0].bias);
  });
}

TEST(FetcherTest, ResidentUnitsAreWatchedButNeverFetched) {
  run_ranks(2, [](World& world) {
    const auto small = trained_values({3}, 9);
    auto options = testing::watched_options(world, "small", small);
    options.is_resident = true;
    ShardedUnit unit({{"small", {"small"}, {small}}}, options);
    Fetcher fetcher(world.group(), {&unit}, {}, dispatch_interceptor());
    fetcher.begin_access({&unit});
    // A gather scope holds it: nothing is fetched, but it must not change.
    EXPECT_THAT(text_of<c10::ValueError>([&] { fetcher.check_idle("step"); }),
                HasSubstr("small"));
    fetcher.end_access({&unit});
    EXPECT_NO_THROW(fetcher.check_idle("step"));
    small + 1;
    fetcher.end_step();
    EXPECT_EQ(fetcher.counts().gathers, 0);
    EXPECT_TRUE(fetcher.plan().trace.empty());
    EXPECT_NO_THROW(fetcher.verify());
    small.set_requires_grad(false);
    EXPECT_THAT(text_of<c10::ValueError>([&] { fetcher.verify(); }),
                HasSubstr("small"));
  });
}

TEST(FetcherTest, WithoutTheFetcherParametersAreNotFetched) {
  run_ranks(2, [](World& world) {
    FetchedLayers model(world, 1);
    model.step();
    EXPECT_NO_THROW(model.fetcher().verify());
    const auto gathers = model.fetcher().counts().gathers;
    model.fetcher().stop_watching();
    EXPECT_THAT(
        text_of<c10::Error>([&] { (model.layers[0].weight + 1).sum(); }),
        HasSubstr("layer0.weight"));
    EXPECT_EQ(model.fetcher().counts().gathers, gathers);
    EXPECT_NO_THROW(model.fetcher().verify());
    model.stop();
    EXPECT_EQ(dispatch_interceptor().find(model.layers[0].weight).unit,
              nullptr);
  });
}

TEST(FetcherTest, ManyThreadsMayUseParametersAtOnce) {
  run_ranks(1, [](World& world) {
    const auto numel = layer_numel(1);
    FetchedLayers model(world, 5, with_limits(2 * numel, numel, kNoLimit));
    std::vector<double> sums;
    for (const auto& twin : model.twins) {
      sums.push_back(twin.weight.sum().item<double>());
    }
    std::atomic<int> num_wrong{0};
    for (int step = 0; step < 3; ++step) {
      std::vector<std::thread> threads;
      for (std::size_t thread = 0; thread < 4; ++thread) {
        threads.emplace_back([&, thread] {
          for (std::size_t i = 0; i < 50; ++i) {
            const auto layer = (i * (thread + 1)) % model.layers.size();
            const auto sum = model.layers[layer].weight.sum().item<double>();
            if (sum != sums[layer]) ++num_wrong;
          }
        });
      }
      for (auto& thread : threads) thread.join();
      EXPECT_NO_THROW(model.fetcher().check_idle("a test"));
      model.fetcher().end_step();
    }
    EXPECT_EQ(num_wrong, 0);
  });
}

}  // namespace
}  // namespace nfold
