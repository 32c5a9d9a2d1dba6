#include "comm/mesh_test.h"

#include <optional>

#include "nfold/errors.h"

namespace nfold {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::UnorderedElementsAre;

TEST(MeshAxes, WithoutSizesEveryRankSplitsTheBatch) {
  for (const int num_ranks : {1, 2, 3, 5, 6}) {
    run_ranks(num_ranks, [&](World& world) {
      const Mesh mesh(world, Config());
      EXPECT_EQ(mesh.rank(), world.rank());
      EXPECT_EQ(mesh.world_size(), num_ranks);
      EXPECT_EQ(mesh.data_parallel_size(), num_ranks);
      EXPECT_EQ(mesh.data_parallel_rank(), world.rank());
      expect_in(mesh, {{"data_parallel", {all_ranks(num_ranks)}}});
    });
  }
}

TEST(MeshAxes, CloneOfTheWorldIsMadeOnceAndUsedForAll) {
  run_ranks(2, [](World& world) {
    const Mesh mesh(world, Config());
    Group& group = mesh.data_parallel();
    EXPECT_EQ(&group, &mesh.data_parallel());
    EXPECT_EQ(&group, &mesh.group("data_parallel"));
    EXPECT_EQ(&group, &mesh.sequence_data());
    EXPECT_EQ(&group, &mesh.state_group());
    EXPECT_EQ(&group, &mesh.shard_group());
    EXPECT_NE(&group, &world.group());
  });
}

TEST(MeshAxes, DataXSequenceIsRowMajor) {
  const GroupLists lists = {{"sequence_parallel", {{0, 1}, {2, 3}}},
                            {"data_parallel", {{0, 2}, {1, 3}}},
                            {"sequence_data", {{0, 1, 2, 3}}}};
  const auto check = [](Mesh& mesh) {
    EXPECT_EQ(mesh.sequence_parallel_size(), 2);
    EXPECT_EQ(mesh.sequence_parallel_rank(), mesh.rank() % 2);
    EXPECT_EQ(mesh.data_parallel_size(), 2);
    EXPECT_EQ(mesh.data_parallel_rank(), mesh.rank() / 2);
    EXPECT_EQ(mesh.tensor_parallel_size(), 1);
    EXPECT_EQ(&mesh.state_group(), mesh.find("sequence_data"));
    EXPECT_NE(&mesh.state_group(), &mesh.data_parallel());
  };
  expect_groups(4, config_of(R"("sequence_parallel_size": 2)"), lists, check);
  expect_groups(
      4, config_of(R"("sequence_parallel_size": 2, "data_parallel_size": 2)"),
      lists, check);
}

TEST(MeshAxes, SequenceGroupsAreNeighboursAndShareTheStateOfAll) {
  expect_groups(8, config_of(R"("sequence_parallel_size": 2)"),
                {{"sequence_parallel", {{0, 1}, {2, 3}, {4, 5}, {6, 7}}},
                 {"sequence_data", {all_ranks(8)}}});
  expect_groups(6, config_of(R"("sequence_parallel_size": 3)"),
                {{"sequence_parallel", {{0, 1, 2}, {3, 4, 5}}},
                 {"data_parallel", {{0, 3}, {1, 4}, {2, 5}}}});
}

TEST(MeshAxes, TensorGroupsAreNeighboursAndDataGroupsStrided) {
  expect_groups(8, config_of(R"("tensor_parallel_size": 2)"),
                {{"data_parallel", {{0, 2, 4, 6}, {1, 3, 5, 7}}},
                 {"sequence_data", {{0, 2, 4, 6}, {1, 3, 5, 7}}},
                 {"tensor_parallel", {{0, 1}, {2, 3}, {4, 5}, {6, 7}}}},
                [](Mesh& mesh) {
                  EXPECT_EQ(mesh.tensor_parallel_size(), 2);
                  EXPECT_EQ(mesh.tensor_parallel_rank(), mesh.rank() % 2);
                  EXPECT_EQ(mesh.data_parallel_rank(), mesh.rank() / 2);
                  EXPECT_EQ(&mesh.state_group(), &mesh.data_parallel());
                });
  expect_groups(5, config_of(R"("tensor_parallel_size": 5)"),
                {{"tensor_parallel", {all_ranks(5)}},
                 {"sequence_data", {{0}, {1}, {2}, {3}, {4}}}});
  expect_groups(
      3, config_of(R"("tensor_parallel_size": 3)"),
      {{"tensor_parallel", {{0, 1, 2}}}, {"data_parallel", {{0}, {1}, {2}}}});
}

TEST(MeshAxes, DataXSequenceXTensorIsRowMajor) {
  expect_groups(
      8, config_of(R"("sequence_parallel_size": 2, "tensor_parallel_size": 2)"),
      {{"data_parallel", {{0, 4}, {1, 5}, {2, 6}, {3, 7}}},
       {"sequence_parallel", {{0, 2}, {1, 3}, {4, 6}, {5, 7}}},
       {"sequence_data", {{0, 2, 4, 6}, {1, 3, 5, 7}}},
       {"tensor_parallel", {{0, 1}, {2, 3}, {4, 5}, {6, 7}}}});
  expect_groups(
      6, config_of(R"("sequence_parallel_size": 3, "tensor_parallel_size": 2)"),
      {{"data_parallel", {{0}, {1}, {2}, {3}, {4}, {5}}},
       {"sequence_data", {{0, 2, 4}, {1, 3, 5}}}});
}

TEST(MeshAxes, SizesThatDoNotFitTheWorldAreNamed) {
  EXPECT_THAT(mesh_error(8, config_of(R"("tensor_parallel_size": 3)")),
              HasSubstr("8 is not divisible by 3"));
  EXPECT_THAT(mesh_error(4, config_of(R"("sequence_parallel_size": 8)")),
              HasSubstr("4 is not divisible by 8"));
  EXPECT_THAT(mesh_error(8, config_of(R"("tensor_parallel_size": 2,
                                         "data_parallel_size": 3)")),
              AllOf(HasSubstr("data_parallel_size (3)"),
                    HasSubstr("tensor_parallel_size (2)"),
                    HasSubstr("must be the world size 8")));
}

TEST(MeshAxes, BatchIsSplitOverTheDataSizeOnly) {
  const Config config = config_of(R"("sequence_parallel_size": 2,
      "tensor_parallel_size": 2, "train_batch_size": 6)");
  run_ranks(4, [&](World& world) {
    const Mesh mesh(world, config);
    EXPECT_EQ(resolve_batch(config, mesh.data_parallel_size())
                  .train_micro_batch_size_per_gpu,
              6);
    EXPECT_EQ(data_parallel_size_of(config, 4), mesh.data_parallel_size());
  });
}

TEST(MeshErrors, AGroupNotAskedForSaysWhatWouldMakeIt) {
  const std::map<std::string, std::string> expected = {
      {"sequence_parallel", "set sequence_parallel_size above 1"},
      {"tensor_parallel", "set tensor_parallel_size above 1"},
      {"pipeline_parallel", "only a group provider"},
      {"expert_4",
       "set expert_parallel_size 4, or call "
       "create_expert_groups(4)"},
      {"expert_data_4", "set expert_parallel_size 4"},
      {"secondary_shard", "zero_optimization.zero_hpz_partition_size"},
      {"mics_shard", "set zero_optimization.mics_shard_size"},
      {"mics_replica", "set zero_optimization.mics_shard_size below"},
      {"mics_intra_node", "mics_hierarchical_params_gather"},
      {"mics_inter_node", "mics_hierarchical_params_gather"},
      {"all_to_all_local", "call create_all_to_all_groups()"},
      {"all_to_all_global", "with ranks on several nodes"},
      {"world", "no configuration makes one of this name"},
      {"expert_", "no configuration makes one of this name"},
  };
  run_ranks(1, [&](World& world) {
    const Mesh mesh(world, Config());
    for (const auto& [name, origin] : expected) {
      EXPECT_EQ(mesh.find(name), nullptr) << name;
      const auto text = text_of<c10::ValueError>([&] { mesh.group(name); });
      EXPECT_THAT(text, HasSubstr("[rank 0] the mesh has no group '" + name +
                                  "'; it has data_parallel, sequence_data"));
      EXPECT_THAT(text, HasSubstr(origin));
    }
    EXPECT_THROW(mesh.expert(2), c10::ValueError);
    EXPECT_THROW(mesh.expert_data(2), c10::ValueError);
    EXPECT_THROW(mesh.tensor_parallel(), c10::ValueError);
    EXPECT_THROW(mesh.sequence_parallel(), c10::ValueError);
  });
}

TEST(MeshGroups, AreListedOnceWhateverTheirNames) {
  run_ranks(2, [](World& world) {
    Mesh mesh(world, config_of(R"("tensor_parallel_size": 2)"));
    EXPECT_THAT(mesh.groups(), UnorderedElementsAre(&mesh.data_parallel(),
                                                    &mesh.tensor_parallel()));
    mesh.destroy("tensor_parallel");
    EXPECT_THAT(mesh.groups(), UnorderedElementsAre(&mesh.state_group()));
  });
}

TEST(MeshSourceRank, IsTheFirstOfTheGroupAndThisRankWithoutOne) {
  run_ranks(4, [](World& world) {
    const Mesh mesh(world, config_of(R"("sequence_parallel_size": 2)"));
    EXPECT_EQ(mesh.source_rank("sequence_parallel"), world.rank() / 2 * 2);
    EXPECT_EQ(mesh.source_rank("data_parallel"), world.rank() % 2);
    EXPECT_EQ(mesh.source_rank("sequence_data"), 0);
    EXPECT_EQ(mesh.source_rank("tensor_parallel"), world.rank());
    EXPECT_EQ(mesh.source_rank("pipeline_parallel"), world.rank());
    EXPECT_THROW(mesh.source_rank("mics_shard"), c10::ValueError);
    EXPECT_THROW(mesh.source_rank("tensor"), c10::ValueError);
  });
}

TEST(MeshTearDown, ADestroyedGroupIsGoneUnderEachOfItsNames) {
  run_ranks(4, [](World& world) {
    Mesh mesh(world, config_of(R"("tensor_parallel_size": 2)"));
    mesh.destroy("data_parallel");
    EXPECT_EQ(mesh.find("data_parallel"), nullptr);
    EXPECT_EQ(mesh.find("sequence_data"), nullptr);
    for (const char* name : {"data_parallel", "sequence_data"}) {
      EXPECT_THAT(text_of<c10::ValueError>([&] { mesh.group(name); }),
                  AllOf(HasSubstr("any more, as it was destroyed"),
                        HasSubstr("it has tensor_parallel")));
    }
    EXPECT_THROW(mesh.destroy("data_parallel"), c10::ValueError);
    EXPECT_THROW(mesh.destroy("world"), c10::ValueError);
    // The others, and the world's, are as they were.
    expect_in(mesh, {{"tensor_parallel", {{0, 1}, {2, 3}}}});
    barrier(world.group()).wait();
    mesh.destroy("tensor_parallel");
    EXPECT_THROW(mesh.source_rank("tensor_parallel"), c10::ValueError);
    EXPECT_EQ(mesh.tensor_parallel_size(), 2);
  });
}

TEST(MeshTearDown, AnotherMeshMayFollowOrStandBeside) {
  run_ranks(4, [](World& world) {
    std::optional<Mesh> mesh;
    mesh.emplace(world, config_of(R"("tensor_parallel_size": 2,
                                     "expert_parallel_size": 2)"));
    EXPECT_EQ(mesh->expert_tensor_parallel_size(), 2);
    mesh.reset();
    mesh.emplace(world, config_of(R"("sequence_parallel_size": 4)"));
    EXPECT_EQ(mesh->tensor_parallel_size(), 1);
    EXPECT_EQ(mesh->expert_tensor_parallel_size(), 1);
    EXPECT_EQ(mesh->largest_expert_size(), std::nullopt);
    EXPECT_EQ(mesh->find("expert_2"), nullptr);
    expect_in(*mesh, {{"sequence_parallel", {all_ranks(4)}}});
    const Mesh second(world, config_of(R"("sequence_parallel_size": 2)"));
    expect_in(second, {{"sequence_parallel", {{0, 1}, {2, 3}}}});
    expect_in(*mesh, {{"sequence_parallel", {all_ranks(4)}}});
  });
}

TEST(MeshTearDown, AMovedMeshKeepsItsGroups) {
  run_ranks(2, [](World& world) {
    Mesh mesh(world, Config());
    Group* group = &mesh.data_parallel();
    Mesh moved = std::move(mesh);
    EXPECT_EQ(&moved.data_parallel(), group);
    moved.create_expert_groups(2);
    expect_in(moved, {{"expert_2", {{0, 1}}}});
  });
}

TEST(MeshSecondaryShard, NeighboursAndAtMostAllRanks) {
  const auto of = [](const char* size) {
    return stage3("\"zero_hpz_partition_size\": " + std::string(size));
  };
  expect_groups(8, of("4"),
                {{"secondary_shard", {{0, 1, 2, 3}, {4, 5, 6, 7}}},
                 {"sequence_data", {all_ranks(8)}}});
  expect_groups(6, of("2"), {{"secondary_shard", {{0, 1}, {2, 3}, {4, 5}}}});
  expect_groups(3, of("16"), {{"secondary_shard", {{0, 1, 2}}}},
                [](Mesh& mesh) {
                  EXPECT_EQ(mesh.secondary_shard()->size(), 3);
                  EXPECT_EQ(mesh.secondary_shard()->rank(), mesh.rank());
                });
}

TEST(MeshSecondaryShard, StaysInsideOfTheRanksThatShareTheState) {
  expect_groups(8,
                stage3(R"("zero_hpz_partition_size": 2)",
                       R"(, "tensor_parallel_size": 2)"),
                {{"secondary_shard", {{0, 2}, {4, 6}, {1, 3}, {5, 7}}}});
  EXPECT_THAT(mesh_error(6, stage3(R"("zero_hpz_partition_size": 2)",
                                   R"(, "tensor_parallel_size": 2)")),
              HasSubstr("3 is not divisible by 2"));
}

TEST(MeshSecondaryShard, IsNullWithout) {
  run_ranks(2, [](World& world) {
    EXPECT_EQ(Mesh(world, Config()).secondary_shard(), nullptr);
    const auto config = stage3(R"("zero_hpz_partition_size": 1)");
    EXPECT_EQ(Mesh(world, config).secondary_shard(), nullptr);
  });
}

TEST(MeshSecondaryShard, SizesThatDoNotDivideAreNamed) {
  EXPECT_THAT(mesh_error(8, stage3(R"("zero_hpz_partition_size": 3)")),
              HasSubstr("8 is not divisible by 3"));
}

TEST(MeshMics, ShardGroupsAreNeighboursAndReplicasHoldTheSame) {
  expect_groups(8, stage3(R"("mics_shard_size": 2)"),
                {{"mics_shard", {{0, 1}, {2, 3}, {4, 5}, {6, 7}}},
                 {"mics_replica", {{0, 2, 4, 6}, {1, 3, 5, 7}}},
                 {"sequence_data", {all_ranks(8)}}},
                [](Mesh& mesh) {
                  EXPECT_EQ(&mesh.shard_group(), mesh.find("mics_shard"));
                  EXPECT_EQ(mesh.replica_group(), mesh.find("mics_replica"));
                });
  expect_groups(
      4, stage3(R"("mics_shard_size": 1)"),
      {{"mics_shard", {{0}, {1}, {2}, {3}}}, {"mics_replica", {{0, 1, 2, 3}}}});
  expect_groups(3, stage3(R"("mics_shard_size": 3)"),
                {{"mics_shard", {{0, 1, 2}}}},
                [](Mesh& mesh) { EXPECT_EQ(mesh.replica_group(), nullptr); });
}

TEST(MeshMics, ShardGroupsStayInsideOfTheRanksThatShareTheState) {
  expect_groups(
      8, stage3(R"("mics_shard_size": 2)", R"(, "tensor_parallel_size": 2)"),
      {{"mics_shard", {{0, 2}, {4, 6}, {1, 3}, {5, 7}}},
       {"mics_replica", {{0, 4}, {2, 6}, {1, 5}, {3, 7}}}});
}

TEST(MeshMics, ShardGroupsAreBlocksOfDataXSequence) {
  expect_groups(
      4, stage3(R"("mics_shard_size": 2)", R"(, "sequence_parallel_size": 2)"),
      {{"sequence_parallel", {{0, 1}, {2, 3}}},
       {"data_parallel", {{0, 2}, {1, 3}}},
       {"mics_shard", {{0, 1}, {2, 3}}},
       {"mics_replica", {{0, 2}, {1, 3}}}});
}

TEST(MeshMics, HopsFollowTheNodes) {
  const ScopedNodeSize nodes(2);
  expect_groups(8, stage3(R"("mics_shard_size": 4,
                          "mics_hierarchical_params_gather": true)"),
                {{"mics_shard", {{0, 1, 2, 3}, {4, 5, 6, 7}}},
                 {"mics_replica", {{0, 4}, {1, 5}, {2, 6}, {3, 7}}},
                 {"mics_intra_node", {{0, 1}, {2, 3}, {4, 5}, {6, 7}}},
                 {"mics_inter_node", {{0, 2}, {1, 3}, {4, 6}, {5, 7}}}});
}

TEST(MeshMics, HopsAreNullWithoutAHierarchicalGather) {
  run_ranks(2, [](World& world) {
    const Mesh mesh(world, stage3(R"("mics_shard_size": 2)"));
    EXPECT_EQ(mesh.mics_intra_node(), nullptr);
    EXPECT_EQ(mesh.mics_inter_node(), nullptr);
  });
}

TEST(MeshMics, AHierarchicalGatherInsideOneNodeIsAnError) {
  EXPECT_THAT(mesh_error(4, stage3(R"("mics_shard_size": 2,
                                "mics_hierarchical_params_gather": true)")),
              HasSubstr("shard groups of several nodes"));
}

TEST(MeshMics, ShardSizesThatDoNotDivideAreNamed) {
  for (const std::string size : {"3", "8", "4294967298"}) {
    EXPECT_THAT(mesh_error(4, stage3("\"mics_shard_size\": " + size)),
                HasSubstr("4 is not divisible by " + size));
  }
}

TEST(MeshAllToAll, LocalGroupsAreNodesAndGlobalOnesJoinThem) {
  const ScopedNodeSize nodes(4);
  run_ranks(8, [](World& world) {
    Mesh mesh(world, Config());
    EXPECT_EQ(mesh.find("all_to_all_local"), nullptr);
    mesh.create_all_to_all_groups();
    expect_in(mesh, {{"all_to_all_local", {{0, 1, 2, 3}, {4, 5, 6, 7}}},
                     {"all_to_all_global", {{0, 4}, {1, 5}, {2, 6}, {3, 7}}}});
    const Group* local = mesh.find("all_to_all_local");
    mesh.create_all_to_all_groups();
    EXPECT_EQ(mesh.find("all_to_all_local"), local);
  });
}

TEST(MeshAllToAll, OneNodeHasNoGlobalGroup) {
  for (const int devices : {3, 4}) {
    const ScopedNodeSize nodes(devices);
    run_ranks(3, [](World& world) {
      Mesh mesh(world, Config());
      mesh.create_all_to_all_groups();
      expect_in(mesh, {{"all_to_all_local", {{0, 1, 2}}}});
      EXPECT_EQ(mesh.find("all_to_all_global"), nullptr);
    });
  }
}

TEST(MeshAllToAll, StaysInsideOfTheRanksThatShareTheState) {
  const ScopedNodeSize nodes(4);
  run_ranks(8, [](World& world) {
    Mesh mesh(world, config_of(R"("tensor_parallel_size": 2)"));
    mesh.create_all_to_all_groups();
    expect_in(mesh, {{"all_to_all_local", {{0, 2}, {4, 6}, {1, 3}, {5, 7}}},
                     {"all_to_all_global", {{0, 4}, {2, 6}, {1, 5}, {3, 7}}}});
  });
}

TEST(MeshAllToAll, PartialNodesAreAnError) {
  const ScopedNodeSize nodes(4);
  run_ranks(6, [](World& world) {
    Mesh mesh(world, Config());
    EXPECT_THAT(
        text_of<c10::ValueError>([&] { mesh.create_all_to_all_groups(); }),
        HasSubstr("found 4 on the node of rank 0 and 2 on that of rank 4"));
  });
}

}  // namespace
}  // namespace nfold
