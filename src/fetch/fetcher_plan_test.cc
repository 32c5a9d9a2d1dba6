// Which units the fetcher gathers and releases, step after step.
#include <gtest/gtest.h>

#include "fetch/fetcher_test.h"

namespace nfold::testing {
namespace {

TEST(FetcherTest, TheFirstStepGathersOnDemandAndLaterOnesAhead) {
  for (const int num_ranks : {1, 2, 3, 4}) {
    run_ranks_over_gloo(num_ranks, [](World& world) {
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
    run_ranks_over_gloo(num_ranks, [numel](World& world) {
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
  run_ranks_over_gloo(2, [numel](World& world) {
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
    run_ranks_over_gloo(num_ranks, [numel](World& world) {
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
  run_ranks_over_gloo(2, [numel](World& world) {
    // Backward reaches the last two layers within one layer's elements.
    FetchedLayers model(world, 4, with_limits(kNoLimit, 0, numel));
    model.step();
    EXPECT_EQ(model.counts_of_step().gathers, 4 + 2);
  });
}

TEST(FetcherTest, LayersMayBeUsedAgainInOneForward) {
  run_ranks_over_gloo(2, [](World& world) {
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
  run_ranks_over_gloo(2, [](World& world) {
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
  run_ranks_over_gloo(2, [](World& world) {
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

// As a custom autograd function does in its forward.
TEST(FetcherTest, AccessesWithoutGradModeInsideOfForwardArePlanned) {
  run_ranks_over_gloo(2, [](World& world) {
    const auto numel = layer_numel(2);
    FetchedLayers model(world, 4, with_limits(2 * numel, numel, kNoLimit));
    const auto step = [&] {
      auto x = at::linear(trained_values({2, kWidth}, 1),
                          model.layers[0].weight, model.layers[0].bias);
      {
        const torch::NoGradGuard no_grad;
        at::linear(x, model.layers[2].weight, model.layers[2].bias);
      }
      const auto loss =
          at::linear(x, model.layers[3].weight, model.layers[3].bias).sum();
      {
        const Fetcher::BackwardScope scope(model.fetcher());
        loss.backward();
      }
      model.fetcher().end_step();
    };
    step();
    EXPECT_EQ(model.fetcher().plan().trace, (AccessTrace{0, 2, 3, 0}));
    const auto misses = model.fetcher().counts().misses;
    step();
    EXPECT_EQ(model.fetcher().counts().misses, misses);
  });
}

TEST(FetcherTest, ABranchOfEvenStepsOnlyIsFollowed) {
  for (const int num_ranks : {1, 2, 3}) {
    run_ranks_over_gloo(num_ranks, [](World& world) {
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
  run_ranks_over_gloo(2, [](World& world) {
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

}  // namespace
}  // namespace nfold::testing
