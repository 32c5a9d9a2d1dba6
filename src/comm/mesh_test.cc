#include "nfold/mesh.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "nfold/collectives.h"
#include "nfold/errors.h"
#include "testing/raised_text.h"
#include "testing/thread_world.h"

namespace nfold {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(Mesh, DataParallelGroupHasAllRanks) {
  run_ranks(3, [](World& world) {
    const Mesh mesh(world, Config());
    EXPECT_EQ(mesh.rank(), world.rank());
    EXPECT_EQ(mesh.world_size(), 3);
    Group& group = mesh.data_parallel();
    EXPECT_EQ(&group, &mesh.group("data_parallel"));
    EXPECT_NE(&group, &world.group());
    EXPECT_THAT(group.global_ranks(), ElementsAre(0, 1, 2));
    auto tensor = at::ones({2});
    all_reduce(group, tensor).wait();
    EXPECT_EQ(tensor[0].item<float>(), 3);
  });
}

// Ranks of the group of this name, or none.
std::vector<int> ranks_of(const Mesh& mesh, const std::string& name) {
  const Group* group = mesh.find(name);
  return group == nullptr ? std::vector<int>() : group->global_ranks();
}

Config stage3(const std::string& fields) {
  return Config::from_json_text(R"({"zero_optimization": {"stage": 3, )" +
                                fields + "}}");
}

// Devices per node, while it lives.
class NodeSize {
 public:
  explicit NodeSize(int size) {
    ::setenv("NDEV_PER_NODE", std::to_string(size).c_str(), 1);
  }
  ~NodeSize() { ::unsetenv("NDEV_PER_NODE"); }
  NodeSize(const NodeSize&) = delete;
  NodeSize& operator=(const NodeSize&) = delete;
};

TEST(MeshSecondaryShard, NeighboursAndAtMostAllRanks) {
  const auto expect = [](int num_ranks, int size,
                         const std::vector<std::vector<int>>& lists) {
    run_ranks(num_ranks, [&](World& world) {
      const Mesh mesh(world, stage3("\"zero_hpz_partition_size\": " +
                                    std::to_string(size)));
      ASSERT_NE(mesh.secondary_shard(), nullptr);
      const auto& own = lists[world.rank() / lists[0].size()];
      EXPECT_EQ(mesh.secondary_shard()->global_ranks(), own);
      EXPECT_EQ(mesh.shard_group().size(), num_ranks);
    });
  };
  expect(8, 4, {{0, 1, 2, 3}, {4, 5, 6, 7}});
  expect(6, 2, {{0, 1}, {2, 3}, {4, 5}});
  expect(3, 16, {{0, 1, 2}});
}

TEST(MeshSecondaryShard, IsNullWithout) {
  run_ranks(2, [](World& world) {
    EXPECT_EQ(Mesh(world, Config()).secondary_shard(), nullptr);
    EXPECT_EQ(Mesh(world, stage3(R"("zero_hpz_partition_size": 1)"))
                  .secondary_shard(),
              nullptr);
  });
}

TEST(MeshSecondaryShard, SizesThatDoNotDivideAreNamed) {
  run_ranks(8, [](World& world) {
    EXPECT_THAT(text_of<c10::ValueError>([&] {
                  Mesh(world, stage3(R"("zero_hpz_partition_size": 3)"));
                }),
                HasSubstr("8 is not divisible by 3"));
  });
}

TEST(MeshMics, HopsFollowTheNodes) {
  const NodeSize nodes(2);
  run_ranks(8, [](World& world) {
    const Mesh mesh(world, stage3(R"("mics_shard_size": 4,
                        "mics_hierarchical_params_gather": true)"));
    const int rank = world.rank();
    const int first = rank / 4 * 4;
    const int lane = rank % 2;
    EXPECT_THAT(mesh.shard_group().global_ranks(),
                ElementsAre(first, first + 1, first + 2, first + 3));
    EXPECT_THAT(mesh.replica_group()->global_ranks(),
                ElementsAre(rank % 4, rank % 4 + 4));
    EXPECT_THAT(mesh.mics_intra_node()->global_ranks(),
                ElementsAre(rank - lane, rank - lane + 1));
    EXPECT_THAT(mesh.mics_inter_node()->global_ranks(),
                ElementsAre(first + lane, first + lane + 2));
  });
}

TEST(MeshMics, HopsAreNullWithoutAHierarchicalGather) {
  run_ranks(2, [](World& world) {
    const Mesh mesh(world, stage3(R"("mics_shard_size": 2)"));
    EXPECT_EQ(mesh.mics_intra_node(), nullptr);
    EXPECT_EQ(mesh.mics_inter_node(), nullptr);
    EXPECT_EQ(mesh.replica_group(), nullptr);
    EXPECT_THAT(ranks_of(mesh, "mics_shard"), ElementsAre(0, 1));
  });
}

TEST(MeshMics, AHierarchicalGatherInsideOneNodeIsAnError) {
  run_ranks(4, [](World& world) {
    EXPECT_THAT(text_of<c10::ValueError>([&] {
                  Mesh(world, stage3(R"("mics_shard_size": 2,
                           "mics_hierarchical_params_gather": true)"));
                }),
                HasSubstr("shard groups of several nodes"));
  });
}

TEST(MeshMics, ShardSizesThatDoNotDivideAreNamed) {
  run_ranks(4, [](World& world) {
    for (const char* size : {"3", "8", "4294967298"}) {
      EXPECT_THAT(text_of<c10::ValueError>([&] {
                    Mesh(world,
                         stage3("\"mics_shard_size\": " + std::string(size)));
                  }),
                  HasSubstr("4 is not divisible by " + std::string(size)));
    }
  });
}

TEST(Mesh, UnknownGroupIsAnErrorThatListsTheGroups) {
  run_ranks(1, [](World& world) {
    const Mesh mesh(world, Config());
    try {
      mesh.group("expert");
      FAIL() << "nothing was raised";
    } catch (const c10::ValueError& error) {
      EXPECT_THAT(message_of(error), HasSubstr("no group 'expert'"));
      EXPECT_THAT(message_of(error), HasSubstr("data_parallel"));
    }
  });
}

}  // namespace
}  // namespace nfold
