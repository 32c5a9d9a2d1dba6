// A unit with a secondary shard: gathered once over all ranks, and then among
// few until its values change.
#include <gtest/gtest.h>

#include <optional>

#include "param/sharded_unit_test.h"

namespace nfold {
namespace {

// A unit with a secondary shard among neighbours.
struct SecondaryUnit {
  SecondaryUnit(World& world, int group_size, std::int64_t numel,
                at::ScalarType dtype = at::kFloat) {
    for (int first = 0; first < world.size(); first += group_size) {
      std::vector<int> ranks;
      for (int i = 0; i < group_size; ++i) ranks.push_back(first + i);
      auto made = world.new_group("secondary", ranks);
      if (made) group = std::move(made);
    }
    auto options = released_options(world, dtype);
    options.groups.secondary = group.get();
    values = torch::arange(numel).to(dtype) + 1;
    unit.emplace(std::vector<ParamState>{make_param("weight", values.clone())},
                 options);
  }

  // The parameter as it is gathered now.
  at::Tensor gathered() {
    gather_now({&*unit});
    return unit->params()[0].tensor().detach().clone();
  }

  std::unique_ptr<Group> group;
  at::Tensor values;
  std::optional<ShardedUnit> unit;
};

TEST(SecondaryShardTest, GivesTheBitsOfThePrimaryAndMovesThemAmongNeighbours) {
  for (const auto& [num_ranks, group_size] :
       {std::pair{2, 2}, {4, 2}, {4, 4}, {6, 2}, {6, 3}, {3, 3}, {5, 5}}) {
    run_ranks(num_ranks, [&, group_size = group_size](World& world) {
      for (const std::int64_t numel : {0, 1, 2, 7, 8, 1023}) {
        for (const auto dtype : {at::kFloat, at::kBFloat16}) {
          SecondaryUnit each(world, group_size, numel, dtype);
          auto& unit = *each.unit;
          const auto calls = [](Group& group) {
            return group
                .counts()[static_cast<std::size_t>(Collective::kAllGather)]
                .calls;
          };
          EXPECT_TRUE(at::equal(each.gathered(), each.values));
          unit.release();
          EXPECT_EQ(unit.state(), UnitState::kSecondary);
          const auto before = calls(world.group());
          EXPECT_TRUE(at::equal(each.gathered(), each.values));
          EXPECT_FALSE(unit.full().slice(0, numel).any().item<bool>());
          unit.release();
          EXPECT_TRUE(at::equal(each.gathered(), each.values));
          EXPECT_EQ(calls(world.group()), before);
          EXPECT_EQ(calls(*each.group), 2);
        }
      }
    });
  }
}

TEST(SecondaryShardTest, HoldsOneOverItsGroupAndGoesWhenValuesChange) {
  run_ranks(4, [](World& world) {
    SecondaryUnit each(world, 2, 1023);
    auto& unit = *each.unit;
    const auto full = unit.layout().numel() * 4;
    EXPECT_EQ(unit.params_bytes(), full / 4);
    each.gathered();
    EXPECT_EQ(unit.params_bytes(), full / 4);
    unit.release();
    EXPECT_EQ(unit.params_bytes(), full / 4 + full / 2);
    unit.owned().add_(100);
    unit.publish_shard();
    EXPECT_EQ(unit.state(), UnitState::kSharded);
    EXPECT_EQ(unit.params_bytes(), full / 4);
    EXPECT_TRUE(at::equal(each.gathered(), each.values + 100));
    unit.release();
    // A scope that writes to the parameter.
    gather_now({&unit});
    unit.params()[0].tensor().detach().fill_(7);
    unit.publish_full({0});
    EXPECT_EQ(unit.params_bytes(), full / 4);
    unit.release();
    EXPECT_TRUE(at::equal(each.gathered(), at::full_like(each.values, 7)));
  });
}

TEST(SecondaryShardTest, TransitionsFollowTheTable) {
  run_ranks(2, [](World& world) {
    SecondaryUnit each(world, 2, 8);
    auto& unit = *each.unit;
    unit.release();
    EXPECT_EQ(unit.state(), UnitState::kSharded) << "nothing to keep yet";
    gather_now({&unit});
    unit.release();
    ASSERT_EQ(unit.state(), UnitState::kSecondary);
    EXPECT_THROW(unit.finish_gather(), c10::Error);
    EXPECT_THROW(unit.publish_full({0}), c10::Error);
    unit.release();
    EXPECT_EQ(unit.state(), UnitState::kSecondary);
    EXPECT_THROW(unit.full().const_data_ptr(), c10::Error);
    ShardedUnit::begin_gather({&unit}, GatherMode::kAllReduce);
    EXPECT_EQ(unit.state(), UnitState::kGathering);
    EXPECT_THROW(unit.release(), c10::Error);
    unit.finish_gather();
    EXPECT_TRUE(at::equal(unit.params()[0].tensor().detach(), each.values));
  });
}

// A unit gathered anew and one that has its secondary shard, in one call.
TEST(SecondaryShardTest, UnitsInBothStatesTravelTogether) {
  run_ranks(4, [](World& world) {
    SecondaryUnit a(world, 2, 7);
    SecondaryUnit b(world, 2, 1023);
    a.gathered();
    a.unit->release();
    gather_now({&*a.unit, &*b.unit});
    EXPECT_TRUE(at::equal(a.unit->params()[0].tensor().detach(), a.values));
    EXPECT_TRUE(at::equal(b.unit->params()[0].tensor().detach(), b.values));
  });
}

}  // namespace
}  // namespace nfold
