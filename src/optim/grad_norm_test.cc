#include "optim/grad_norm.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>

#include "testing/thread_world.h"

namespace nfold {
namespace {

std::unique_ptr<ShardedUnit> make_unit(const World& world, std::int64_t numel,
                                       bool owns_whole_range) {
  ShardedUnitOptions options;
  options.name = "unit";
  options.rank = world.rank();
  options.num_shards = world.size();
  options.groups.holders = options.groups.shard = &world.group();
  options.owns_whole_range = owns_whole_range;
  auto weight = torch::zeros({numel}).set_requires_grad(true);
  return std::make_unique<ShardedUnit>(
      std::vector<ParamState>{{"p", {"p"}, {weight}}}, options);
}

// The gradient of a unit, zero on residue, equal on all ranks.
at::Tensor flat_grad(const ShardedUnit& unit, std::int64_t numel,
                     double phase) {
  auto flat = torch::zeros({unit.layout().numel()});
  flat.narrow(0, 0, numel).copy_(torch::sin(torch::arange(numel) + phase));
  return flat;
}

TEST(GlobalGradNormTest, HasTheSameBitsWhateverIsOwned) {
  const std::vector<std::int64_t> numels{1, 50, 3000, 0};
  for (const int num_ranks : {1, 2, 3, 4}) {
    run_ranks(num_ranks, [&](World& world) {
      std::vector<double> norms;
      double square_sum = 0;
      for (const bool owns_all : {false, true}) {
        square_sum = 0;
        std::vector<std::unique_ptr<ShardedUnit>> units;
        std::vector<ShardedUnit*> pointers;
        for (const auto numel : numels) {
          units.push_back(make_unit(world, numel, owns_all));
          pointers.push_back(units.back().get());
          const auto grad = flat_grad(*units.back(), numel,
                                      static_cast<double>(units.size()));
          square_sum += grad.to(at::kDouble).square().sum().item<double>();
          units.back()->accumulate_grad(grad, 1);
        }
        norms.push_back(global_grad_norm(pointers));
      }
      EXPECT_EQ(norms[0], norms[1]);
      EXPECT_NEAR(norms[0], std::sqrt(square_sum), 1e-9 * norms[0]);
    });
  }
}

TEST(GlobalGradNormTest, UnitsWithoutGradientCountAsZero) {
  run_ranks(2, [](World& world) {
    const auto with = make_unit(world, 64, false);
    const auto without = make_unit(world, 64, false);
    with->accumulate_grad(torch::full({64}, 0.5), 1);
    EXPECT_EQ(global_grad_norm({without.get(), with.get()}), 4);
    EXPECT_EQ(global_grad_norm({}), 0);
  });
}

TEST(GlobalGradNormTest, OneRanksInfinityIsEverybodys) {
  for (const double bad : {INFINITY, -INFINITY, NAN}) {
    run_ranks(3, [&](World& world) {
      const auto unit = make_unit(world, 300, false);
      auto grad = torch::ones({unit->layout().numel()});
      grad[unit->layout().shard_numel + 2] = bad;  // rank 1 owns it
      unit->accumulate_grad(grad, 1);
      EXPECT_FALSE(std::isfinite(global_grad_norm({unit.get()})));
    });
  }
}

// Squares beyond fp32 are no overflow.
TEST(GlobalGradNormTest, LargeGradientsAreSummedInDouble) {
  run_ranks(2, [](World& world) {
    const auto unit = make_unit(world, 64, false);
    unit->accumulate_grad(torch::full({64}, 1e30), 1);
    EXPECT_NEAR(global_grad_norm({unit.get()}), 8e30, 1e24);
  });
}

// Two by two ranks: neighbours share out experts or the parts of a layer, and
// each shards what it has with the rank across.
TEST(GlobalGradNormTest, OtherPartsCountOnceAndReplicasNotAgain) {
  run_ranks(4, [](World& world) {
    std::unique_ptr<Group> neighbours;
    std::unique_ptr<Group> across;
    for (const auto& ranks : {std::vector<int>{0, 1}, {2, 3}}) {
      auto made = world.new_group("neighbours", ranks);
      if (made) neighbours = std::move(made);
    }
    for (const auto& ranks : {std::vector<int>{0, 2}, {1, 3}}) {
      auto made = world.new_group("across", ranks);
      if (made) across = std::move(made);
    }
    const auto unit_with = [&](Group& shard, const UnitGroups& others,
                               double value) {
      ShardedUnitOptions options;
      options.name = "unit";
      options.groups = others;
      options.groups.holders = options.groups.shard = &shard;
      options.rank = shard.rank();
      options.num_shards = shard.size();
      auto unit = std::make_unique<ShardedUnit>(
          std::vector<ParamState>{
              {"p", {"p"}, {torch::zeros({64}).set_requires_grad(true)}}},
          options);
      unit->accumulate_grad(torch::full({64}, value), 1);
      return unit;
    };
    const auto even = world.rank() % 2 == 0;
    const auto dense = unit_with(world.group(), {}, 1);  // 64
    const auto expert =
        unit_with(*across, {.experts = neighbours.get()}, even ? 2 : 3);  // 832
    const auto split = unit_with(*across, {.tensor_parts = neighbours.get()},
                                 even ? 4 : 0.5);  // 1040
    const auto same =
        unit_with(*across, {.tensor_replicas = neighbours.get()}, 5);  // 1600
    EXPECT_EQ(global_grad_norm({dense.get()}), 8);
    EXPECT_DOUBLE_EQ(global_grad_norm({expert.get()}), std::sqrt(832.0));
    EXPECT_DOUBLE_EQ(global_grad_norm({split.get()}), std::sqrt(1040.0));
    EXPECT_DOUBLE_EQ(
        global_grad_norm({dense.get(), expert.get(), split.get(), same.get()}),
        std::sqrt(64.0 + 832 + 1040 + 1600));
    if (world.rank() == 3) expert->accumulate_grad(torch::full({64}, NAN), 1);
    EXPECT_FALSE(std::isfinite(global_grad_norm({dense.get(), expert.get()})));
  });
}

}  // namespace
}  // namespace nfold
