// Norms and clipping over the groups among which a model is split.
#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "nfold/clip.h"
#include "nfold/norms.h"
#include "nfold/partition.h"
#include "testing/raised_text.h"
#include "testing/thread_world.h"

namespace nfold {
namespace {

using ::testing::HasSubstr;

constexpr double kInfiniteNorm = std::numeric_limits<double>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
const Placement kSplit{.is_tensor_split = true};
const Placement kCopy{};

at::Tensor param_of(const std::vector<float>& values,
                    const std::vector<float>& grad) {
  auto param = at::tensor(values).requires_grad_();
  param.mutable_grad() = at::tensor(grad);
  return param;
}

at::Tensor grad_only(const std::vector<float>& grad) {
  return param_of(std::vector<float>(grad.size(), 0), grad);
}

// A group of this rank alone.
std::unique_ptr<Group> own_group(World& world, const std::string& name) {
  std::unique_ptr<Group> own;
  for (int rank = 0; rank < world.size(); ++rank) {
    auto made = world.new_group(c10::str(name, rank), {rank});
    if (made) own = std::move(made);
  }
  return own;
}

TEST(GroupClipGradNorm, CopiesCountOnceInTheModelGroupAndSplitOnesEverywhere) {
  run_ranks(2, [](World& world) {
    const auto copy = grad_only({3});
    const auto split = grad_only({world.rank() == 0 ? 4.0F : 12.0F});
    const NormOptions options{.groups = {.model = &world.group()},
                              .placements = {kCopy, kSplit}};
    EXPECT_DOUBLE_EQ(clip_grad_norm({copy, split}, 6.5, options), 13);
    EXPECT_NEAR(copy.grad().item<float>(), 1.5, 1e-6);
    EXPECT_NEAR(split.grad().item<float>(), world.rank() == 0 ? 2 : 6, 1e-5);
  });
}

TEST(GroupClipGradNorm, OtherPowersAddAndTheMaximumIsTaken) {
  run_ranks(2, [](World& world) {
    const auto copy = grad_only({-1});
    const auto split = grad_only({static_cast<float>(2 + world.rank())});
    NormOptions options{.groups = {.model = &world.group()},
                        .placements = {kCopy, kSplit}};
    for (const double p : {1.0, 3.0, kInfiniteNorm}) {
      options.p = p;
      const double expected = p == 1 ? 6 : (p == 3 ? std::cbrt(1 + 8 + 27) : 3);
      EXPECT_DOUBLE_EQ(clip_grad_norm({copy, split}, 100, options), expected);
    }
  });
}

TEST(GroupClipGradNorm, RanksWithDifferentExpertsAgreeOnTheMeanOfTheirNorms) {
  run_ranks(2, [](World& world) {
    const auto dense = grad_only({1});
    const auto expert = grad_only({static_cast<float>(world.rank() + 1)});
    const double norm = clip_grad_norm({dense, expert}, 100,
                                       {.groups = {.data = &world.group()}});
    // Not sqrt(3.5), which would be the root of the mean square.
    EXPECT_NEAR(norm, 1.82514, 5e-6);
    EXPECT_DOUBLE_EQ(norm, (std::sqrt(2) + std::sqrt(5)) / 2);
  });
}

TEST(GroupClipGradNorm, InvalidOnOneRankScalesOnNone) {
  run_ranks(2, [](World& world) {
    const auto param = grad_only({world.rank() == 0 ? kNan : 3.0F});
    for (const double p : {2.0, kInfiniteNorm}) {
      EXPECT_EQ(clip_grad_norm({param}, 1,
                               {.p = p, .groups = {.data = &world.group()}}),
                kInfiniteNorm);
      EXPECT_EQ(clip_grad_norm({param}, 1,
                               {.p = p,
                                .groups = {.model = &world.group()},
                                .placements = {kSplit}}),
                kInfiniteNorm);
    }
    EXPECT_TRUE(world.rank() == 0 || param.grad().item<float>() == 3);
  });
}

TEST(WeightNorm, OfValuesAndInvalidIfNotFinite) {
  const auto weight = at::tensor({3.0F, -4.0F});
  EXPECT_EQ(get_weight_norm({weight}), 5);
  EXPECT_EQ(get_weight_norm({weight}, {.p = kInfiniteNorm}), 4);
  EXPECT_EQ(get_weight_norm({weight, at::tensor({kNan})}), kInvalidNorm);
}

TEST(WeightNorm, PipelineReplicasAndCopiesOfTensorRanksCountOnce) {
  run_ranks(2, [](World& world) {
    const auto copy = at::tensor({3.0F});
    const auto split = at::tensor({world.rank() == 0 ? 4.0F : 12.0F});
    const auto tied = at::tensor({100.0F});
    const NormOptions options{.groups = {.model = &world.group()},
                              .placements = {kCopy, kSplit, kSplit},
                              .is_pipeline_replica = {false, false, true}};
    EXPECT_DOUBLE_EQ(get_weight_norm({copy, split, tied}, options), 13);
  });
}

TEST(GradZeros, AreCountedWithoutCopies) {
  const auto a = grad_only({0, 1, 0});
  const auto b = grad_only({0});
  EXPECT_EQ(get_grad_zeros({a, b, at::zeros({5})}), 3);
  run_ranks(2, [](World& world) {
    const auto copy = grad_only({0, 1, 0});
    const auto split = grad_only({0});
    const auto tied = grad_only({0});
    EXPECT_EQ(get_grad_zeros({copy, split, tied},
                             {.groups = {.model = &world.group()},
                              .placements = {kCopy, kSplit, kSplit},
                              .is_pipeline_replica = {false, false, true}}),
              2 + 1 + 1);
  });
}

TEST(FlattenedGradNorm, IsMinusOneWhereAnElementIsNotFinite) {
  const auto a = grad_only({3, -4});
  const auto b = grad_only({12});
  EXPECT_EQ(get_flattened_grad_norm({a, b}), 13);
  EXPECT_EQ(get_flattened_grad_norm({a}, {.p = kInfiniteNorm}), 4);
  for (const float bad : {kNan, std::numeric_limits<float>::infinity()}) {
    for (const double p : {2.0, kInfiniteNorm}) {
      EXPECT_EQ(get_flattened_grad_norm({a, grad_only({bad})}, {.p = p}), -1);
    }
  }
}

TEST(FlattenedGradNorm, MaskedRangesDoNotCount) {
  const auto param = grad_only({3, 4, 5, 12});
  EXPECT_EQ(get_flattened_grad_norm({param}, {}, {{{0, 2}}}), 13);
  EXPECT_DOUBLE_EQ(get_flattened_grad_norm({param}, {}, {{{0, 1}, {3, 4}}}),
                   std::sqrt(41));
  EXPECT_DOUBLE_EQ(get_flattened_grad_norm({param}, {}, {{{0, 2}, {1, 3}}}),
                   12);
  EXPECT_EQ(get_flattened_grad_norm({param}, {.p = kInfiniteNorm}, {{{3, 4}}}),
            5);
  EXPECT_TRUE(at::equal(param.grad(), at::tensor({3.0F, 4.0F, 5.0F, 12.0F})));
  EXPECT_THROW(get_flattened_grad_norm({param}, {}, {{{2, 5}}}),
               c10::ValueError);
  EXPECT_THROW(get_flattened_grad_norm({param}, {}, {{}, {}}), c10::ValueError);
}

TEST(FlattenedGradNorm, IsCompletedOverTheModelGroup) {
  run_ranks(2, [](World& world) {
    const auto param = grad_only({world.rank() == 0 ? 5.0F : 12.0F});
    const NormGroups groups{.model = &world.group()};
    EXPECT_EQ(get_flattened_grad_norm({param}, {.groups = groups}), 13);
    EXPECT_EQ(get_flattened_grad_norm({param},
                                      {.p = kInfiniteNorm, .groups = groups}),
              12);
  });
}

TEST(GlobalNormOfTensors, EveryPowerAndInvalidAsMinusOne) {
  const auto a = at::tensor({3.0F, 4.0F});
  const auto b = at::tensor({12.0F});
  EXPECT_EQ(get_global_norm_of_tensors({a, b}), 13);
  EXPECT_EQ(get_global_norm_of_tensors({a, b}, {.p = kInfiniteNorm}), 12);
  EXPECT_DOUBLE_EQ(
      get_global_norm_of_tensors(
          {at::tensor({1.0F, -2.0F}), at::tensor({3.0F})}, {.p = 1}),
      6);
  for (const double bad : {kInfiniteNorm, std::nan("")}) {
    const auto broken = at::tensor({static_cast<float>(bad)});
    EXPECT_EQ(get_global_norm_of_tensors({a, broken}), -1);
    EXPECT_EQ(get_global_norm_of_tensors({broken, a}, {.p = kInfiniteNorm}),
              -1);
  }
  EXPECT_THAT(text_of<c10::ValueError>(
                  [&] { get_global_norm_of_tensors({a, at::Tensor()}); }),
              HasSubstr("tensor 1"));
}

TEST(GlobalNormOfTensors, OfPartsIsThatOfTheWholeInAnyWorld) {
  for (const int num_ranks : {3, 5, 6}) {
    run_ranks(num_ranks, [&](World& world) {
      for (const std::int64_t numel : {0, 1, 2, 7, 8, 1023}) {
        const auto whole = at::arange(numel, at::kFloat) - 3;
        const auto bounds = partition_uniform(numel, num_ranks);
        const auto begin = bounds[world.rank()];
        const auto part =
            whole.narrow(0, begin, bounds[world.rank() + 1] - begin);
        for (const double p : {1.0, 2.0, kInfiniteNorm}) {
          EXPECT_DOUBLE_EQ(
              get_global_norm_of_tensors(
                  {part}, {.p = p, .groups = {.model = &world.group()}}),
              norm_of({whole}, p));
        }
      }
    });
  }
}

// Which groups add up depends on what is split among them.
TEST(GlobalNormOfTensors, ExpertsAddOverPipelineOrTensorAndExpertGroups) {
  run_ranks(2, [](World& world) {
    const auto alone = own_group(world, "alone");
    Group* both = &world.group();
    const auto mine = at::tensor({world.rank() == 0 ? 3.0F : 4.0F});
    const double own = world.rank() == 0 ? 3 : 4;
    const auto norm = [&](const NormGroups& groups, double p = 2) {
      return get_global_norm_of_tensors({mine}, {.p = p, .groups = groups});
    };
    EXPECT_EQ(norm({.model = both}), 5);
    EXPECT_EQ(norm({.model = both}, kInfiniteNorm), 4);
    // Experts that are whole on a tensor rank do not add over tensor ranks.
    EXPECT_EQ(norm({.model = both, .expert = alone.get()}), own);
    EXPECT_EQ(norm({.model = both, .pipeline = both, .expert = alone.get()}),
              5);
    EXPECT_EQ(norm({.model = both,
                    .pipeline = alone.get(),
                    .expert = alone.get(),
                    .expert_tensor_size = 2}),
              5);
    EXPECT_EQ(norm({.model = alone.get(), .expert = both}), 5);
    EXPECT_EQ(norm({.model = alone.get(), .expert = both}, kInfiniteNorm), 4);
    // Not experts: the pipeline group is not asked.
    EXPECT_EQ(norm({.pipeline = both}), own);
  });
}

TEST(NormWithExperts, CombinesThatOfTheRestAndOfEachExpertGroup) {
  run_ranks(2, [](World& world) {
    const auto mine = at::tensor({world.rank() == 0 ? 3.0F : 4.0F});
    const std::map<std::string, ExpertTensors> experts{
        {"ep_size_2", {{mine}, &world.group()}}};
    EXPECT_DOUBLE_EQ(get_norm_with_moe_layers(12, experts), 13);
    EXPECT_EQ(get_norm_with_moe_layers(1, experts, {.p = kInfiniteNorm}), 4);
    EXPECT_EQ(get_norm_with_moe_layers(2, experts, {.p = 1}), 9);
    EXPECT_EQ(get_norm_with_moe_layers(-1, experts), -1);
    const auto broken = at::tensor({world.rank() == 0 ? kNan : 4.0F});
    const std::map<std::string, ExpertTensors> bad{
        {"ep_size_2", {{broken}, &world.group()}}};
    EXPECT_EQ(get_norm_with_moe_layers(12, bad), -1);
  });
}

TEST(NormWithExpertsFast, IsTheMeanOverTheGroup) {
  run_ranks(1, [](World& world) {
    EXPECT_EQ(get_norm_with_moe_layers_fast(4, world.group()), 4);
  });
  run_ranks(2, [](World& world) {
    EXPECT_EQ(
        get_norm_with_moe_layers_fast(world.rank() == 0 ? 4 : 1, world.group()),
        2.5);
    EXPECT_EQ(get_norm_with_moe_layers_fast(world.rank() == 0 ? -1 : 1,
                                            world.group()),
              kInfiniteNorm);
  });
}

TEST(NormOptions, PlacementsAreOneForEachTensor) {
  const auto param = grad_only({1});
  EXPECT_THAT(text_of<c10::ValueError>([&] {
                clip_grad_norm({param}, 1, {.placements = {kCopy, kCopy}});
              }),
              HasSubstr("each of the 1 tensors or none but found 2"));
  EXPECT_THROW(get_weight_norm({param}, {.is_pipeline_replica = {true, true}}),
               c10::ValueError);
}

TEST(ClipTensorsOverGroups, EveryRankScalesByTheWholeNorm) {
  run_ranks(2, [](World& world) {
    const auto mine = at::tensor({world.rank() == 0 ? 3.0F : 4.0F});
    EXPECT_EQ(clip_tensors_by_global_norm(
                  {mine}, {.groups = {.model = &world.group()}}),
              5);
    EXPECT_NEAR(mine.item<float>(), world.rank() == 0 ? 0.6 : 0.8, 1e-6);
  });
}

TEST(NormGraph, ReplaysWhileTensorsStayWhereTheyAre) {
  GraphReplay graph;
  const auto a = grad_only({3, 4});
  const auto b = grad_only({12});
  const NormOptions options{.graph = &graph};
  EXPECT_DOUBLE_EQ(clip_grad_norm({a, b}, 6.5, options), 13);
  EXPECT_TRUE(at::allclose(a.grad(), at::tensor({1.5F, 2.0F})));
  const auto num_graphs = graph.num_graphs();
  a.grad().copy_(at::tensor({0.0F, 5.0F}));
  b.grad().fill_(12);
  EXPECT_DOUBLE_EQ(clip_grad_norm({a, b}, 6.5, options), 13);
  EXPECT_TRUE(at::allclose(a.grad(), at::tensor({0.0F, 2.5F})));
  EXPECT_TRUE(at::allclose(b.grad(), at::tensor({6.0F})));
  EXPECT_EQ(graph.num_graphs(), num_graphs);
  EXPECT_EQ(graph.num_replays(), 3);  // norm, coefficient, scaling

  a.mutable_grad() = at::tensor({3.0F, 4.0F});
  EXPECT_THAT(
      text_of<c10::ValueError>([&] { clip_grad_norm({a, b}, 6.5, options); }),
      HasSubstr("input 0 of shape [2]"));
  graph.reset();
  EXPECT_NEAR(clip_grad_norm({a}, 1, options), 5, 1e-12);
}

TEST(NormGraph, GivesTheNormsOfEveryFunctionAndPower) {
  const auto weight = param_of({3, 4}, {5, 12});
  for (const double p : {1.0, 2.0, 3.0, kInfiniteNorm}) {
    GraphReplay graph;
    for (int call = 0; call < 2; ++call) {
      EXPECT_DOUBLE_EQ(get_weight_norm({weight}, {.p = p, .graph = &graph}),
                       norm_of({weight}, p));
      EXPECT_DOUBLE_EQ(
          get_flattened_grad_norm({weight}, {.p = p, .graph = &graph}),
          norm_of({weight.grad()}, p));
      EXPECT_DOUBLE_EQ(get_global_norm_of_tensors({weight.grad()},
                                                  {.p = p, .graph = &graph}),
                       norm_of({weight.grad()}, p));
    }
  }
}

TEST(NormGraph, ExpertGroupsOfTheSameShapesAreDifferentGraphs) {
  run_ranks(1, [](World& world) {
    GraphReplay graph;
    const std::map<std::string, ExpertTensors> experts{
        {"ep_size_1", {{at::tensor({3.0F})}, &world.group()}},
        {"ep_size_2", {{at::tensor({4.0F})}, &world.group()}}};
    for (int call = 0; call < 2; ++call) {
      EXPECT_EQ(get_norm_with_moe_layers(0, experts, {.graph = &graph}), 5);
    }
    EXPECT_EQ(graph.num_graphs(), 2);
    EXPECT_EQ(graph.num_replays(), 2);
  });
}

TEST(NormGraph, SeesWhatIsNotFinite) {
  GraphReplay graph;
  const auto tensor = at::tensor({3.0F, 4.0F});
  const ClipOptions options{.graph = &graph};
  EXPECT_EQ(clip_tensors_by_global_norm({tensor}, options), 5);
  EXPECT_TRUE(at::allclose(tensor, at::tensor({0.6F, 0.8F})));
  tensor.copy_(at::tensor({3.0F, kNan}));
  EXPECT_EQ(clip_tensors_by_global_norm({tensor}, options), kInfiniteNorm);
  EXPECT_EQ(tensor[0].item<float>(), 3);
}

}  // namespace
}  // namespace nfold
