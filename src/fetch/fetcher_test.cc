// Errors, modes and pins of the fetcher.
#include "fetch/fetcher.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <atomic>
#include <thread>

#include "fetch/fetcher_test.h"
#include "testing/raised_text.h"

namespace nfold::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

// Raised on every rank when rank 0 and the others use these layers.
void expect_divergence(
    int num_ranks, FetcherOptions options,
    const std::function<at::Tensor(FetchedLayers&, Order)>& use) {
  run_ranks_over_gloo(num_ranks, [&](World& world) {
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
  run_ranks_over_gloo(2, [](World& world) {
    FetchedLayers model(world, 2);
    // Alike as far as gathers go, but not in what follows from them.
    model.step(world.rank() == 0 ? Order{0, 1} : Order{0, 1, 0});
    EXPECT_THAT(
        text_of<c10::DistBackendError>([&] { model.loss(model.layers, {0}); }),
        AllOf(HasSubstr("step 1"), HasSubstr("layer0")));
  });
}

TEST(FetcherTest, ALiveBudgetBelowTheLargestUnitIsRaisedToIt) {
  run_ranks_over_gloo(2, [](World& world) {
    FetchedLayers model(world, 3, with_limits(1, kNoLimit, kNoLimit));
    for (int step = 0; step < 3; ++step) {
      EXPECT_EQ(model.counts_of_step().peak_bytes, model.bytes());
    }
  });
}

TEST(FetcherTest, NegativeLimitsAreErrors) {
  run_ranks_over_gloo(1, [](World& world) {
    for (const auto& options : {with_limits(-1, 0, 0), with_limits(0, -1, 0),
                                with_limits(0, 0, -1)}) {
      EXPECT_THAT(
          text_of<c10::ValueError>([&] { FetchedLayers(world, 1, options); }),
          AllOf(HasSubstr("stage3_max_live_parameters"), HasSubstr("-1")));
    }
  });
}

TEST(FetcherTest, SequentialModeGathersOneUnitAtATime) {
  run_ranks_over_gloo(2, [](World& world) {
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
    run_ranks_over_gloo(num_ranks, [](World& world) {
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
  run_ranks_over_gloo(2, [](World& world) {
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
  run_ranks_over_gloo(2, [](World& world) {
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
  run_ranks_over_gloo(2, [](World& world) {
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
  run_ranks_over_gloo(2, [](World& world) {
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
  run_ranks_over_gloo(2, [](World& world) {
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
  run_ranks_over_gloo(2, [](World& world) {
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
  run_ranks_over_gloo(2, [](World& world) {
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
  run_ranks_over_gloo(1, [](World& world) {
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
}  // namespace nfold::testing
