#include "grad/grad_reducer.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "testing/thread_world.h"

namespace nfold {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

// Shards of 2 and 3 ranks have no residue.
constexpr std::int64_t kNumel = 96;

// Units of one parameter each, "p0", "p1", ...
struct Units {
  Units(const World& world, std::size_t num_units,
        bool owns_whole_range = false) {
    for (std::size_t i = 0; i < num_units; ++i) {
      const auto name = fmt::format("p{}", i);
      params.push_back(torch::ones({kNumel}).set_requires_grad(true));
      ShardedUnitOptions options;
      options.name = name;
      options.rank = world.rank();
      options.num_shards = world.size();
      options.groups.holders = options.groups.shard = &world.group();
      options.owns_whole_range = owns_whole_range;
      units.push_back(std::make_unique<ShardedUnit>(
          std::vector<ParamState>{{name, {name}, {params.back()}}}, options));
      pointers.push_back(units.back().get());
    }
  }

  // Adds param i times its factor to a loss, for each factor that is not 0.
  void backward(const std::vector<double>& factors) {
    auto loss = torch::zeros({});
    for (std::size_t i = 0; i < factors.size(); ++i) {
      if (factors[i] != 0) loss = loss + params[i].sum() * factors[i];
    }
    loss.backward();
  }

  double grad(std::size_t i) {
    const auto& grad = units[i]->grad();
    const auto first = grad[0].item<double>();
    EXPECT_TRUE(torch::equal(grad, torch::full_like(grad, first)));
    return first;
  }

  std::vector<at::Tensor> params;
  std::vector<std::unique_ptr<ShardedUnit>> units;
  std::vector<ShardedUnit*> pointers;
};

GradReducerOptions one_unit_buckets() {
  GradReducerOptions options;
  options.bucket_numel = 1;
  return options;
}

TEST(GradReducerTest, SumsOverRanksWithBothScales) {
  run_ranks(3, [](World& world) {
    for (const bool all_reduces : {false, true}) {
      for (const bool owns_all : {false, true}) {
        if (owns_all && !all_reduces) continue;
        Units units(world, 2, owns_all);
        auto options = one_unit_buckets();
        options.all_reduces = all_reduces;
        options.scale_before = 0.5;
        options.scale_after = 0.25;
        GradReducer reducer(world.group(), units.pointers, options);
        EXPECT_EQ(reducer.num_buckets(), 2);
        reducer.begin("step 1");
        units.backward({1.0 + world.rank(), 8});
        reducer.finish(true);
        EXPECT_EQ(units.grad(0), 6 * 0.125);
        EXPECT_EQ(units.grad(1), 24 * 0.125);
        EXPECT_FALSE(units.params[0].grad().defined());
      }
    }
  });
}

TEST(GradReducerTest, BucketsHoldSeveralUnits) {
  run_ranks(2, [](World& world) {
    Units units(world, 5);
    GradReducerOptions options;
    options.bucket_numel = 2 * kNumel;
    GradReducer reducer(world.group(), units.pointers, options);
    EXPECT_EQ(reducer.num_buckets(), 3);
    reducer.begin("step 1");
    units.backward({1, 2, 3, 4, 5});
    reducer.finish(true);
    for (std::size_t i = 0; i < 5; ++i) {
      EXPECT_EQ(units.grad(i), 2.0 * static_cast<double>(i + 1));
    }
    // One filled while one was under way.
    EXPECT_LE(reducer.peak_bytes(), 2 * 2 * kNumel * 4);
    EXPECT_GE(reducer.peak_bytes(), 2 * kNumel * 4);
  });
}

TEST(GradReducerTest, RanksMayUseDifferentParameters) {
  run_ranks(3, [](World& world) {
    for (const bool overlaps : {false, true}) {
      Units units(world, 4);
      auto options = one_unit_buckets();
      options.overlaps_backward = overlaps;
      GradReducer reducer(world.group(), units.pointers, options);
      for (int step = 0; step < 3; ++step) {
        // Each rank leaves out another one; p3 is used by nobody.
        std::vector<double> factors{1, 1, 1, 0};
        factors[static_cast<std::size_t>((world.rank() + step) % 3)] = 0;
        reducer.begin("step");
        units.backward(factors);
        reducer.finish(true);
        for (std::size_t i = 0; i < 3; ++i) EXPECT_EQ(units.grad(i), 2);
        EXPECT_EQ(units.grad(3), 0);
        for (auto* unit : units.pointers) unit->clear_grad();
      }
    }
  });
}

TEST(GradReducerTest, MicroStepsAddUp) {
  run_ranks(2, [](World& world) {
    for (const bool at_boundary : {false, true}) {
      Units units(world, 2);
      auto options = one_unit_buckets();
      options.reduces_at_boundary = at_boundary;
      GradReducer reducer(world.group(), units.pointers, options);
      const auto calls = [&] {
        return world.group()
            .counts()[static_cast<std::size_t>(Collective::kReduceScatter)]
            .calls;
      };
      const auto calls_before = calls();
      for (int micro = 0; micro < 3; ++micro) {
        reducer.begin("step 1");
        units.backward({1, micro == 1 ? 5.0 : 0.0});
        reducer.finish(micro == 2);
        EXPECT_EQ(reducer.local_bytes() > 0, at_boundary && micro < 2);
      }
      EXPECT_EQ(units.grad(0), 6);
      EXPECT_EQ(units.grad(1), 10);
      EXPECT_EQ(calls() - calls_before, at_boundary ? 2 : 6);
    }
  });
}

TEST(GradReducerTest, LateGradientsAreReducedOnceMore) {
  run_ranks(2, [](World& world) {
    Units units(world, 2);
    GradReducer reducer(world.group(), units.pointers, one_unit_buckets());
    reducer.begin("step 1");
    units.backward({1, 1});
    // Everything is launched; one rank comes back with more.
    if (world.rank() == 0) units.backward({0, 10});
    if (world.rank() == 0) units.backward({0, 100});
    reducer.finish(true);
    EXPECT_EQ(units.grad(0), 2);
    EXPECT_EQ(units.grad(1), 112);
  });
}

TEST(GradReducerTest, ResetDropsWhatWasCollected) {
  run_ranks(2, [](World& world) {
    Units units(world, 3);
    GradReducer reducer(world.group(), units.pointers, one_unit_buckets());
    reducer.begin("step 1");
    units.backward({0, INFINITY, 3});  // the last two are launched
    reducer.reset();
    EXPECT_FALSE(reducer.non_finite().has_value());
    EXPECT_FALSE(units.units[2]->has_grad());
    reducer.begin("step 1");
    units.backward({1, 1, 1});
    reducer.finish(true);
    for (std::size_t i = 0; i < 3; ++i) EXPECT_EQ(units.grad(i), 2);
  });
}

TEST(GradReducerTest, TheFirstNonFiniteValueIsNoted) {
  run_ranks(2, [](World& world) {
    Units units(world, 2);
    GradReducer reducer(world.group(), units.pointers, one_unit_buckets());
    reducer.begin("step 1");
    const double factor = world.rank() == 1 ? -INFINITY : 1.0;
    (units.params[0].sum() + units.params[1].narrow(0, 7, 2).sum() * factor)
        .backward();
    reducer.finish(true);
    const auto& found = reducer.non_finite();
    ASSERT_EQ(found.has_value(), world.rank() == 1);
    if (found) {
      EXPECT_EQ(found->unit, 1);
      EXPECT_EQ(found->param, 0);
      EXPECT_EQ(found->element, 7);
      EXPECT_EQ(found->value, -INFINITY);
    }
    reducer.clear_non_finite();
    EXPECT_FALSE(reducer.non_finite().has_value());
  });
}

TEST(GradReducerTest, UnusedParametersCanBeAnError) {
  run_ranks(1, [](World& world) {
    Units units(world, 3);
    auto options = one_unit_buckets();
    options.allows_unused = false;
    GradReducer reducer(world.group(), units.pointers, options);
    reducer.begin("step 7");
    units.backward({1, 0, 1});
    try {
      reducer.finish(true);
      FAIL() << "no error";
    } catch (const c10::ValueError& error) {
      EXPECT_THAT(error.what_without_backtrace(),
                  AllOf(HasSubstr("step 7"), HasSubstr("p1"),
                        ::testing::Not(HasSubstr("p0")),
                        ::testing::Not(HasSubstr("p2"))));
    }
  });
}

TEST(GradReducerTest, OtherBackwardsAreNotItsBusiness) {
  run_ranks(1, [](World& world) {
    Units units(world, 1);
    {
      GradReducer reducer(world.group(), units.pointers, {});
      units.backward({3});
      EXPECT_EQ(units.params[0].grad()[0].item<float>(), 3);
      units.params[0].mutable_grad().reset();
      EXPECT_THROW(
          {
            reducer.begin("a");
            reducer.begin("b");
          },
          c10::ValueError);
    }
    // The hooks are still there; their reducer is not.
    units.backward({4});
    EXPECT_EQ(units.params[0].grad()[0].item<float>(), 4);
  });
}

TEST(GradReducerTest, CommunicatesInTheDtypeAskedFor) {
  run_ranks(2, [](World& world) {
    Units units(world, 1);
    GradReducerOptions options;
    options.comm_dtype = at::kBFloat16;
    GradReducer reducer(world.group(), units.pointers, options);
    reducer.begin("step 1");
    units.backward({1.001});  // 1 in bf16
    reducer.finish(true);
    EXPECT_EQ(units.grad(0), 2);
    EXPECT_EQ(units.units[0]->grad().scalar_type(), at::kFloat);
  });
}

}  // namespace
}  // namespace nfold
