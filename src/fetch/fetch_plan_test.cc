#include "fetch/fetch_plan.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <set>

namespace nfold {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using ::testing::UnorderedElementsAre;

using Numels = std::vector<std::int64_t>;

// What happens when a plan is executed as fetch_plan.h says.
class PlanRun {
 public:
  PlanRun(const FetchPlan& plan, const Numels& numels,
          const FetchPlanOptions& options)
      : numels_(numels), options_(options), gathers_(numels.size(), 0) {
    if (plan.steps.size() != plan.trace.size()) fail(0, "steps for");
    for (std::size_t entry = 0; entry < plan.trace.size(); ++entry) {
      run_step(plan.trace[entry], plan.steps[entry]);
    }
  }

  // The first broken promise, or "".
  const std::string& problem() const { return problem_; }
  std::int64_t gathers() const {
    return std::accumulate(gathers_.begin(), gathers_.end(), std::int64_t{0});
  }
  const std::vector<std::int64_t>& gathers_of_units() const { return gathers_; }
  std::int64_t on_demand() const { return on_demand_; }
  std::int64_t peak_numel() const { return peak_numel_; }

 private:
  void fail(std::size_t unit, const char* what) {
    if (problem_.empty()) problem_ = fmt::format("{} unit {}", what, unit);
  }

  std::int64_t numel_of(const std::set<std::size_t>& units) const {
    std::int64_t numel = 0;
    for (const auto unit : units) numel += numels_[unit];
    return numel;
  }

  void gather(std::size_t unit) {
    if (!live_.insert(unit).second) fail(unit, "gathers the whole");
    ++gathers_[unit];
    peak_numel_ = std::max(peak_numel_, numel_of(live_));
  }

  void run_step(std::size_t unit, const FetchStep& step) {
    for (const auto each : step.release) {
      if (live_.erase(each) == 0) fail(each, "releases the sharded");
      if (ahead_.count(each)) fail(each, "releases the prefetched");
      if (std::count(step.prefetch.begin(), step.prefetch.end(), each)) {
        fail(each, "releases and prefetches");
      }
    }
    const auto limit = std::max(options_.max_live_numel, numels_[unit]);
    if (!live_.count(unit)) {
      gather(unit);
      ++on_demand_;
    }
    ahead_.erase(unit);
    for (const auto each : step.prefetch) {
      gather(each);
      ahead_.insert(each);
      if (numel_of(ahead_) > options_.prefetch_numel) {
        fail(each, "is too far ahead with");
      }
    }
    if (numel_of(live_) > limit) fail(unit, "holds too much at");
  }

  const Numels& numels_;
  const FetchPlanOptions& options_;
  std::set<std::size_t> live_;
  std::set<std::size_t> ahead_;  // prefetched and not used yet
  std::vector<std::int64_t> gathers_;
  std::int64_t on_demand_ = 0;
  std::int64_t peak_numel_ = 0;
  std::string problem_;
};

std::string text_of_plan(const AccessTrace& trace, const Numels& numels,
                         const FetchPlanOptions& options) {
  return fmt::format("trace {} numels {} live {} prefetch {} reuse {}", trace,
                     numels, options.max_live_numel, options.prefetch_numel,
                     options.max_reuse_numel);
}

PlanRun run_plan(const AccessTrace& trace, const Numels& numels,
                 const FetchPlanOptions& options) {
  return {compile_fetch_plan(trace, numels, options), numels, options};
}

// Promises that hold whatever the trace.
void expect_sound(const AccessTrace& trace, const Numels& numels,
                  const FetchPlanOptions& options) {
  const auto run = run_plan(trace, numels, options);
  ASSERT_EQ(run.problem(), "") << text_of_plan(trace, numels, options);
  if (options.prefetch_numel == 0) {
    ASSERT_EQ(run.on_demand(), run.gathers())
        << text_of_plan(trace, numels, options);
  }
  if (options.max_reuse_numel == 0) {
    ASSERT_EQ(run.gathers(), static_cast<std::int64_t>(trace.size()))
        << text_of_plan(trace, numels, options);
  }
}

FetchPlanOptions plan_options(std::int64_t live, std::int64_t prefetch,
                              std::int64_t reuse) {
  return {.max_live_numel = live,
          .prefetch_numel = prefetch,
          .max_reuse_numel = reuse};
}

constexpr std::int64_t kPlenty = 1'000'000;

TEST(FetchPlanTest, AnEmptyTraceGivesAnEmptyPlan) {
  const auto plan = compile_fetch_plan({}, {4, 4}, {});
  EXPECT_THAT(plan.trace, IsEmpty());
  EXPECT_THAT(plan.steps, IsEmpty());
}

TEST(FetchPlanTest, LargeLimitsGatherEachUnitOnceAndAllOfItAhead) {
  const Numels numels{5, 3, 4, 2};
  const AccessTrace trace{0, 1, 2, 3, 2, 1, 0};
  const auto options = plan_options(kPlenty, kPlenty, kPlenty);
  const auto plan = compile_fetch_plan(trace, numels, options);
  EXPECT_THAT(plan.steps[0].prefetch, ElementsAre(1, 2, 3));
  const PlanRun run(plan, numels, options);
  EXPECT_EQ(run.problem(), "");
  EXPECT_THAT(run.gathers_of_units(), Each(1));
  EXPECT_EQ(run.on_demand(), 1);
}

TEST(FetchPlanTest, PrefetchesAsFarAsItsLimit) {
  const AccessTrace trace{0, 1, 2, 3};
  const auto plan =
      compile_fetch_plan(trace, {10, 10, 10, 10}, plan_options(kPlenty, 20, 0));
  EXPECT_THAT(plan.steps[0].prefetch, ElementsAre(1, 2));
  EXPECT_THAT(plan.steps[1].prefetch, ElementsAre(3));
  EXPECT_THAT(plan.steps[2].prefetch, IsEmpty());
}

TEST(FetchPlanTest, PrefetchesInTheOrderOfUseWithoutLeavingAnyOut) {
  // Unit 2 would fit where unit 1 does not, but is needed later.
  const auto plan = compile_fetch_plan({0, 1, 2}, {1, 10, 1},
                                       plan_options(kPlenty, 9, kPlenty));
  EXPECT_THAT(plan.steps[0].prefetch, IsEmpty());
  EXPECT_THAT(plan.steps[1].prefetch, ElementsAre(2));
}

TEST(FetchPlanTest, PrefetchLimitOfZeroPrefetchesNotEvenEmptyUnits) {
  const AccessTrace trace{0, 1, 2, 1, 0};
  const auto plan =
      compile_fetch_plan(trace, {4, 0, 4}, plan_options(kPlenty, 0, kPlenty));
  for (const auto& step : plan.steps) EXPECT_THAT(step.prefetch, IsEmpty());
}

TEST(FetchPlanTest, ReuseDistanceOfZeroReleasesAfterEachUse) {
  const AccessTrace trace{0, 1, 2, 2, 1, 0};
  const auto plan =
      compile_fetch_plan(trace, {4, 4, 4}, plan_options(kPlenty, 0, 0));
  EXPECT_THAT(plan.steps[0].release, IsEmpty());
  EXPECT_THAT(plan.steps[1].release, ElementsAre(0));
  EXPECT_THAT(plan.steps[2].release, ElementsAre(1));
  EXPECT_THAT(plan.steps[3].release, ElementsAre(2));
  EXPECT_THAT(plan.steps[4].release, ElementsAre(2));
  EXPECT_THAT(plan.steps[5].release, ElementsAre(1));
}

TEST(FetchPlanTest, AUnitStaysForUsesWithinTheReuseDistance) {
  // 3 elements of others lie between the uses of unit 0, 1 between unit 1's.
  const AccessTrace trace{0, 1, 2, 1, 0};
  const auto release_steps_at = [&](std::int64_t distance) {
    const auto plan = compile_fetch_plan(trace, {1, 1, 1},
                                         plan_options(kPlenty, 0, distance));
    std::vector<std::vector<std::size_t>> releases;
    for (const auto& step : plan.steps) releases.push_back(step.release);
    return releases;
  };
  EXPECT_THAT(release_steps_at(3), ElementsAre(IsEmpty(), IsEmpty(), IsEmpty(),
                                               ElementsAre(2), ElementsAre(1)));
  EXPECT_THAT(release_steps_at(2),
              ElementsAre(IsEmpty(), ElementsAre(0), IsEmpty(), ElementsAre(2),
                          ElementsAre(1)));
}

TEST(FetchPlanTest, OfWhatIsLiveTheOneUsedLastMakesRoom) {
  const auto plan = compile_fetch_plan({0, 1, 2, 0, 1}, {1, 1, 1},
                                       plan_options(2, 0, kPlenty));
  EXPECT_THAT(plan.steps[2].release, ElementsAre(1));
  EXPECT_THAT(plan.steps[3].release, ElementsAre(2));
}

TEST(FetchPlanTest, AUnitAboveTheLiveBudgetIsGatheredAlone) {
  const AccessTrace trace{1, 2, 0, 1};
  const Numels numels{5, 1, 1};
  const auto options = plan_options(2, kPlenty, kPlenty);
  const auto plan = compile_fetch_plan(trace, numels, options);
  EXPECT_THAT(plan.steps[2].release, UnorderedElementsAre(1, 2));
  EXPECT_THAT(plan.steps[2].prefetch, IsEmpty());
  const PlanRun run(plan, numels, options);
  EXPECT_EQ(run.problem(), "");
  EXPECT_EQ(run.peak_numel(), 5);
}

TEST(FetchPlanTest, PrefetchingDisplacesOnlyWhatIsUsedLater) {
  const AccessTrace trace{0, 1, 0, 2, 1};
  const auto plan =
      compile_fetch_plan(trace, {1, 1, 1}, plan_options(2, kPlenty, kPlenty));
  EXPECT_THAT(plan.steps[0].prefetch, ElementsAre(1));
  // Unit 0 is needed before unit 2, and unit 1 is in use.
  EXPECT_THAT(plan.steps[1].prefetch, IsEmpty());
  // Unit 1 is needed after it.
  EXPECT_THAT(plan.steps[2].release, ElementsAre(1));
  EXPECT_THAT(plan.steps[2].prefetch, ElementsAre(2));
}

TEST(FetchPlanTest, WhatAStepReleasesItDoesNotPrefetch) {
  const auto plan =
      compile_fetch_plan({0, 1, 0}, {4, 4}, plan_options(kPlenty, kPlenty, 0));
  EXPECT_THAT(plan.steps[1].release, ElementsAre(0));
  EXPECT_THAT(plan.steps[1].prefetch, IsEmpty());
}

TEST(FetchPlanTest, NothingIsPrefetchedPastAUnitThatHasToComeAgainBefore) {
  // Unit 0 is released after its first use, so its second one comes first.
  const AccessTrace trace{0, 1, 0, 2};
  const Numels numels{3, 1, 2};
  const auto options = plan_options(kPlenty, 3, 0);
  const auto plan = compile_fetch_plan(trace, numels, options);
  EXPECT_THAT(plan.steps[0].prefetch, ElementsAre(1));
  EXPECT_EQ(PlanRun(plan, numels, options).problem(), "");
}

TEST(FetchPlanTest, ForwardAndBackwardWithoutReuseArePrefetchedToo) {
  const AccessTrace trace{0, 1, 2, 3, 3, 2, 1, 0};
  const Numels numels{1, 1, 1, 1};
  const auto options = plan_options(kPlenty, 2, 0);
  const PlanRun run(compile_fetch_plan(trace, numels, options), numels,
                    options);
  EXPECT_EQ(run.problem(), "");
  EXPECT_THAT(run.gathers_of_units(), Each(2));
  // The first unit of the step, and the one that backward starts with.
  EXPECT_EQ(run.on_demand(), 2);
}

TEST(FetchPlanTest, EqualInputsGiveEqualHashesAndOthersDoNot) {
  const AccessTrace trace{0, 1, 2, 1, 0};
  const Numels numels{4, 4, 4};
  const auto hash = [&](const AccessTrace& trace, FetchPlanOptions options) {
    return compile_fetch_plan(trace, numels, options).hash;
  };
  const auto options = plan_options(100, 50, 25);
  EXPECT_EQ(hash(trace, options), hash(trace, options));
  const std::set<std::uint64_t> hashes{
      hash(trace, options), hash({0, 1, 2, 1}, options),
      hash({0, 1, 2, 0, 1}, options), hash({}, options),
      hash(trace, plan_options(101, 50, 25)),
      hash(trace, plan_options(100, 51, 25)),
      hash(trace, plan_options(100, 50, 26)),
      hash(trace, plan_options(50, 100, 25)),
      // An empty plan of an executor that has none yet.
      FetchPlan{}.hash};
  EXPECT_THAT(hashes, SizeIs(9));
}

TEST(FetchPlanTest, EveryShortTraceIsSoundUnderEveryLimit) {
  const Numels numels{1, 2, 3};
  constexpr std::size_t kLength = 6;
  std::size_t num_traces = 1;
  for (std::size_t length = 1; length <= kLength; ++length) {
    num_traces *= numels.size();
    for (std::size_t code = 0; code < num_traces; ++code) {
      AccessTrace trace;
      for (auto rest = code; trace.size() < length; rest /= numels.size()) {
        trace.push_back(rest % numels.size());
      }
      for (const std::int64_t live : {1, 3, 4, 6}) {
        for (const std::int64_t prefetch : {0, 1, 3, 6}) {
          for (const std::int64_t reuse : {0, 1, 3, 100}) {
            ASSERT_NO_FATAL_FAILURE(expect_sound(
                trace, numels, plan_options(live, prefetch, reuse)));
          }
        }
      }
    }
  }
}

TEST(FetchPlanTest, RandomTracesAreSound) {
  std::mt19937 random(1);
  const auto below = [&](std::int64_t limit) {
    return std::uniform_int_distribution<std::int64_t>(0, limit - 1)(random);
  };
  for (int round = 0; round < 3000; ++round) {
    Numels numels(static_cast<std::size_t>(1 + below(12)));
    for (auto& numel : numels) numel = below(50);
    AccessTrace trace(static_cast<std::size_t>(1 + below(60)));
    for (auto& unit : trace) {
      unit = static_cast<std::size_t>(
          below(static_cast<std::int64_t>(numels.size())));
    }
    // Every third time a limit is out of the way.
    const auto limit = [&] { return below(3) == 0 ? kPlenty : below(200); };
    const auto live = limit();
    const auto prefetch = limit();
    ASSERT_NO_FATAL_FAILURE(
        expect_sound(trace, numels, plan_options(live, prefetch, limit())));
  }
}

TEST(FetchPlanTest, TracesOfThousandsOfEntriesAreFine) {
  constexpr std::size_t kUnits = 200;
  const Numels numels(kUnits, 1000);
  AccessTrace trace;
  while (trace.size() < 4000) {
    for (std::size_t i = 0; i < kUnits; ++i) trace.push_back(i);
    for (std::size_t i = kUnits - 1; i > 0; --i) trace.push_back(i - 1);
  }
  for (const std::int64_t live : {3'000, 50'000, 1'000'000}) {
    for (const std::int64_t prefetch : {1'000, 20'000, 1'000'000}) {
      const auto options = plan_options(live, prefetch, kPlenty);
      const auto run = run_plan(trace, numels, options);
      EXPECT_EQ(run.problem(), "");
      EXPECT_EQ(run.on_demand(), 1);
    }
  }
}

}  // namespace
}  // namespace nfold
