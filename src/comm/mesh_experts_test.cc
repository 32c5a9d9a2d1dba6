// Groups of experts, from the configuration and by create_expert_groups.
#include <optional>

#include "comm/mesh_test.h"

namespace nfold {
namespace {

using ::testing::HasSubstr;

Config experts(int size, const std::string& more = "") {
  return config_of("\"expert_parallel_size\": " + std::to_string(size) + more);
}

constexpr char kDataFirst[] = R"(, "use_data_before_expert_parallelism": true)";

TEST(MeshExperts, ShareOutTheExpertsAmongNeighbours) {
  expect_groups(8, experts(2),
                {{"expert_data_2", {{0, 2, 4, 6}, {1, 3, 5, 7}}},
                 {"expert_2", {{0, 1}, {2, 3}, {4, 5}, {6, 7}}}},
                [](Mesh& mesh) {
                  EXPECT_EQ(&mesh.expert(2), mesh.find("expert_2"));
                  EXPECT_EQ(&mesh.expert_data(2), mesh.find("expert_data_2"));
                });
  expect_groups(8, experts(4),
                {{"expert_data_4", {{0, 4}, {1, 5}, {2, 6}, {3, 7}}},
                 {"expert_4", {{0, 1, 2, 3}, {4, 5, 6, 7}}}});
  expect_groups(6, experts(3),
                {{"expert_data_3", {{0, 3}, {1, 4}, {2, 5}}},
                 {"expert_3", {{0, 1, 2}, {3, 4, 5}}}});
  expect_groups(2, experts(2),
                {{"expert_data_2", {{0}, {1}}}, {"expert_2", {{0, 1}}}});
}

TEST(MeshExperts, WithDataBeforeExpertNeighboursHoldTheSame) {
  expect_groups(8, experts(2, kDataFirst),
                {{"expert_data_2", {{0, 1, 2, 3}, {4, 5, 6, 7}}},
                 {"expert_2", {{0, 4}, {1, 5}, {2, 6}, {3, 7}}}});
  expect_groups(8, experts(4, kDataFirst),
                {{"expert_data_4", {{0, 1}, {2, 3}, {4, 5}, {6, 7}}},
                 {"expert_4", {{0, 2, 4, 6}, {1, 3, 5, 7}}}});
}

TEST(MeshExperts, WithTensorParallelismStayAmongRanksWithTheSamePart) {
  const std::string tensor = R"(, "tensor_parallel_size": 2)";
  const RankLists neighbours = {{0, 2}, {4, 6}, {1, 3}, {5, 7}};
  const RankLists strided = {{0, 4}, {2, 6}, {1, 5}, {3, 7}};
  expect_groups(
      8, experts(2, tensor),
      {{"expert_2", neighbours}, {"expert_data_2", strided}},
      [](Mesh& mesh) { EXPECT_EQ(mesh.expert_tensor_parallel_size(), 2); });
  expect_groups(8, experts(2, tensor + kDataFirst),
                {{"expert_2", strided}, {"expert_data_2", neighbours}});
}

TEST(MeshExperts, WithSequenceParallelismAreBlocksOfDataXSequence) {
  const std::string sequence = R"(, "sequence_parallel_size": 2)";
  expect_groups(8, experts(2, sequence),
                {{"expert_2", {{0, 1}, {2, 3}, {4, 5}, {6, 7}}},
                 {"expert_data_2", {{0, 2, 4, 6}, {1, 3, 5, 7}}}});
  expect_groups(
      4, experts(4, sequence),
      {{"expert_4", {{0, 1, 2, 3}}}, {"expert_data_4", {{0}, {1}, {2}, {3}}}});
  expect_groups(
      4, experts(2, sequence + kDataFirst),
      {{"expert_2", {{0, 2}, {1, 3}}}, {"expert_data_2", {{0, 1}, {2, 3}}}});
}

TEST(MeshExperts, OfOneSizeAreMadeOnceAndOfSeveralExistSideBySide) {
  run_ranks(4, [](World& world) {
    Mesh mesh(world, experts(2));
    const Group* expert = &mesh.expert(2);
    const Group* data = &mesh.expert_data(2);
    mesh.create_expert_groups(2);
    EXPECT_EQ(&mesh.expert(2), expert);
    EXPECT_EQ(&mesh.expert_data(2), data);
    mesh.create_expert_groups(4);
    EXPECT_EQ(&mesh.expert(2), expert);
    expect_in(mesh, {{"expert_2", {{0, 1}, {2, 3}}},
                     {"expert_4", {{0, 1, 2, 3}}},
                     {"expert_data_4", {{0}, {1}, {2}, {3}}}});
  });
}

TEST(MeshExperts, OfSize1HaveAllExpertsOnEveryRank) {
  run_ranks(4, [](World& world) {
    Mesh mesh(world, experts(1));
    EXPECT_EQ(mesh.find("expert_1"), nullptr);
    mesh.create_expert_groups(1);
    expect_in(mesh, {{"expert_data_1", {{0, 1, 2, 3}}},
                     {"expert_1", {{0}, {1}, {2}, {3}}}});
  });
}

TEST(MeshExperts, LargestSizeIsThatOfTheGroupsMadeSoFar) {
  run_ranks(4, [](World& world) {
    Mesh mesh(world, Config());
    EXPECT_EQ(mesh.largest_expert_size(), std::nullopt);
    EXPECT_EQ(mesh.largest_expert_name(), "ep_size_None");
    EXPECT_EQ(mesh.expert_tensor_parallel_size(), 1);
    mesh.create_expert_groups(4);
    mesh.create_expert_groups(2);
    EXPECT_EQ(mesh.largest_expert_size(), 4);
    EXPECT_EQ(mesh.largest_expert_name(), "ep_size_4");
    mesh.destroy("expert_4");
    EXPECT_EQ(mesh.largest_expert_size(), 2);
    EXPECT_THROW(mesh.expert(4), c10::ValueError);
    mesh.create_expert_groups(4);
    EXPECT_EQ(mesh.largest_expert_name(), "ep_size_4");
    expect_in(mesh, {{"expert_4", {{0, 1, 2, 3}}}});
  });
}

TEST(MeshExperts, SourceIsRank0OfTheGroupWhereverItIs) {
  run_ranks(4, [](World& world) {
    const Mesh mesh(world, experts(2, kDataFirst));
    EXPECT_EQ(mesh.source_rank("expert_2"), world.rank() % 2);
    EXPECT_EQ(mesh.source_rank("expert_data_2"), world.rank() / 2 * 2);
  });
}

TEST(MeshExperts, SizesThatDoNotDivideTheRanksThatShareTheStateAreNamed) {
  EXPECT_THAT(mesh_error(8, experts(3)), HasSubstr("8 is not divisible by 3"));
  EXPECT_THAT(mesh_error(8, experts(3, R"(, "tensor_parallel_size": 2)")),
              HasSubstr("4 is not divisible by 3"));
  EXPECT_THAT(mesh_error(2, experts(4)), HasSubstr("2 is not divisible by 4"));
  run_ranks(2, [](World& world) {
    Mesh mesh(world, Config());
    EXPECT_THAT(text_of<c10::ValueError>([&] { mesh.create_expert_groups(3); }),
                HasSubstr("2 is not divisible by 3"));
    EXPECT_THAT(text_of<c10::ValueError>([&] { mesh.create_expert_groups(0); }),
                HasSubstr("expected at least 1 but found 0"));
    EXPECT_EQ(mesh.largest_expert_size(), std::nullopt);
  });
}

TEST(MeshExperts, StandBesideSecondaryShardsButNotBesideMics) {
  expect_groups(
      4,
      stage3(R"("zero_hpz_partition_size": 2)",
             R"(, "expert_parallel_size": 2)"),
      {{"expert_2", {{0, 1}, {2, 3}}}, {"secondary_shard", {{0, 1}, {2, 3}}}});
  run_ranks(2, [](World& world) {
    Mesh mesh(world, stage3(R"("mics_shard_size": 1)"));
    EXPECT_THAT(text_of<c10::ValueError>([&] { mesh.create_expert_groups(2); }),
                HasSubstr("the mesh has MiCS shard groups"));
  });
}

}  // namespace
}  // namespace nfold
