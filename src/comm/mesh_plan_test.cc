#include "comm/mesh_plan.h"

#include <algorithm>
#include <string>
#include <vector>

#include "layout/rank_lists_test.h"

namespace nfold {
namespace {

using ::testing::ElementsAre;

std::vector<std::string> names_of(const MeshPlan& plan) {
  std::vector<std::string> names;
  for (const auto& group : plan) names.push_back(group.name);
  return names;
}

const RankLists& lists_of(const MeshPlan& plan, const std::string& name) {
  const auto found =
      std::find_if(plan.begin(), plan.end(),
                   [&](const GroupPlan& group) { return group.name == name; });
  TORCH_CHECK(found != plan.end(), name);
  return found->lists;
}

Config everything() {
  Config config;
  config.sequence_parallel_size = 2;
  config.tensor_parallel_size = 2;
  config.zero_optimization.mics_shard_size = 8;
  config.zero_optimization.mics_hierarchical_params_gather = true;
  config.zero_optimization.zero_quantized_gradients = true;
  return config;
}

TEST(MeshPlan, GroupsAreMadeInOneOrder) {
  EXPECT_THAT(names_of(plan_mesh(Config(), 4, 1)),
              ElementsAre("data_parallel"));
  EXPECT_THAT(names_of(plan_mesh(everything(), 64, 8)),
              ElementsAre("data_parallel", "sequence_parallel", "sequence_data",
                          "tensor_parallel", "mics_shard", "mics_replica",
                          "mics_intra_node", "mics_inter_node",
                          "all_to_all_local", "all_to_all_global"));
  Config experts;
  experts.expert_parallel_size = 4;
  experts.zero_optimization.zero_hpz_partition_size = 2;
  EXPECT_THAT(names_of(plan_mesh(experts, 8, 1)),
              ElementsAre("data_parallel", "secondary_shard", "expert_data_4",
                          "expert_4"));
}

TEST(MeshPlan, HopsOfShardGroupsHaveTheirPartOfEachNode) {
  // 16 ranks of two parts each: a shard group of 8 has half of four nodes.
  Config config = everything();
  config.sequence_parallel_size = 1;
  config.zero_optimization.mics_shard_size = 4;
  const auto plan = plan_mesh(config, 16, 4);
  EXPECT_EQ(lists_of(plan, kMicsShard)[0], (RankList{0, 2, 4, 6}));
  EXPECT_EQ(lists_of(plan, kMicsIntraNode)[0], (RankList{0, 2}));
  EXPECT_EQ(lists_of(plan, kMicsInterNode)[0], (RankList{0, 4}));
  EXPECT_EQ(lists_of(plan, kAllToAllLocal)[0], (RankList{0, 2}));
  EXPECT_EQ(lists_of(plan, kAllToAllGlobal)[0], (RankList{0, 4, 8, 12}));
}

TEST(MeshPlan, Of4096RanksHasEachRankOnceInEveryKindOfGroup) {
  constexpr int kWorldSize = 4096;
  const auto plan = plan_mesh(everything(), kWorldSize, 8);
  for (const auto& [name, lists] : plan) {
    EXPECT_TRUE(
        is_partition(lists, kWorldSize, static_cast<int>(lists.front().size())))
        << name;
  }
  EXPECT_EQ(lists_of(plan, kDataParallel).size(), 4);
  EXPECT_EQ(lists_of(plan, kSequenceData).size(), 2);
  EXPECT_TRUE(share_at_most_one_rank(lists_of(plan, kSequenceData),
                                     lists_of(plan, kTensorParallel),
                                     kWorldSize));
  EXPECT_TRUE(share_at_most_one_rank(lists_of(plan, kDataParallel),
                                     lists_of(plan, kSequenceParallel),
                                     kWorldSize));
}

// Ranks are apart on one axis only, or the groups would not be orthogonal.
void expect_orthogonal(const MeshPlan& plan, int world_size) {
  const auto& data = lists_of(plan, kDataParallel);
  const auto& state = state_lists_of(plan);
  EXPECT_TRUE(
      is_partition(data, world_size, static_cast<int>(data.front().size())));
  EXPECT_TRUE(
      is_partition(state, world_size, static_cast<int>(state.front().size())));
  for (const auto& [name, lists] : plan) {
    if (name == kSequenceParallel) {
      EXPECT_TRUE(share_at_most_one_rank(data, lists, world_size));
    } else if (name == kTensorParallel) {
      EXPECT_TRUE(share_at_most_one_rank(state, lists, world_size));
    }
  }
}

TEST(MeshPlan, OfEveryWorldAndSizesThatFitIsOrthogonal) {
  int num_plans = 0;
  for (int world_size = 1; world_size <= 24; ++world_size) {
    for (const int tensor : divisors(world_size)) {
      for (const int sequence : divisors(world_size / tensor)) {
        Config config;
        config.tensor_parallel_size = tensor;
        config.sequence_parallel_size = sequence;
        const int state_size = world_size / tensor;
        for (const int expert : divisors(state_size)) {
          config.expert_parallel_size = expert;
          const auto plan = plan_mesh(config, world_size, 1);
          expect_orthogonal(plan, world_size);
          ++num_plans;
          if (expert == 1) continue;
          const auto& experts = lists_of(plan, expert_group_name(expert));
          const auto& holders = lists_of(plan, expert_data_group_name(expert));
          EXPECT_TRUE(is_partition(experts, world_size, expert));
          EXPECT_TRUE(is_partition(holders, world_size, state_size / expert));
          EXPECT_TRUE(share_at_most_one_rank(experts, holders, world_size));
        }
      }
    }
  }
  EXPECT_GT(num_plans, 400);
}

TEST(MeshPlan, KnowsWhatMakesEachOfItsGroups) {
  Config config = everything();
  config.expert_parallel_size = 4;
  config.zero_optimization.zero_hpz_partition_size = 2;
  for (const auto& name : names_of(plan_mesh(config, 64, 8))) {
    EXPECT_NE(origin_of(name), "") << name;
  }
  EXPECT_EQ(origin_of("expert_data_4"), origin_of("expert_4"));
  for (const char* name : {"expert_", "expert_x", "expert_data_", "tensor"}) {
    EXPECT_EQ(origin_of(name), "") << name;
  }
}

}  // namespace
}  // namespace nfold
