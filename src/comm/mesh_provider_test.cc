// A mesh around the groups of another library.
#include <array>
#include <memory>

#include "comm/mesh_test.h"
#include "comm/rank_list_exchange.h"

namespace nfold {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

// Lists of all ranks; none: the provider has no such groups.
struct ProviderLists {
  RankLists data{};
  RankLists model{};
  RankLists pipeline{};
  RankLists sequence{};
  RankLists sequence_data{};
};

class ListProvider : public GroupProvider {
 public:
  ListProvider(const World& world, const ProviderLists& lists)
      : data_(make(world, "dp", lists.data)),
        model_(make(world, "mp", lists.model)),
        pipeline_(make(world, "pp", lists.pipeline)),
        sequence_(make(world, "sp", lists.sequence)),
        sequence_data_(make(world, "sdp", lists.sequence_data)) {}

  Group* data_parallel_group() const override { return data_.get(); }
  Group* model_parallel_group() const override { return model_.get(); }
  Group* pipeline_parallel_group() const override { return pipeline_.get(); }
  Group* sequence_parallel_group() const override { return sequence_.get(); }
  Group* sequence_data_parallel_group() const override {
    return sequence_data_.get();
  }

 private:
  // A rank of two lists gets the group of the last.
  static std::unique_ptr<Group> make(const World& world,
                                     const std::string& name,
                                     const RankLists& lists) {
    std::unique_ptr<Group> own;
    for (const auto& ranks : lists) {
      if (auto group = world.new_group(name, ranks)) own = std::move(group);
    }
    return own;
  }

  std::unique_ptr<Group> data_;
  std::unique_ptr<Group> model_;
  std::unique_ptr<Group> pipeline_;
  std::unique_ptr<Group> sequence_;
  std::unique_ptr<Group> sequence_data_;
};

void expect_provided(
    int num_ranks, const ProviderLists& lists, const Config& config,
    const GroupLists& groups,
    const std::function<void(Mesh&, ListProvider&)>& more =
        [](Mesh& /*mesh*/, ListProvider& /*provider*/) {}) {
  run_ranks(num_ranks, [&](World& world) {
    ListProvider provider(world, lists);
    Mesh mesh(world, config, provider);
    expect_in(mesh, groups);
    more(mesh, provider);
  });
}

std::string provider_error(int num_ranks, const ProviderLists& lists,
                           const Config& config = Config()) {
  std::string text;
  run_ranks(num_ranks, [&](World& world) {
    ListProvider provider(world, lists);
    const auto raised =
        text_of<c10::ValueError>([&] { Mesh mesh(world, config, provider); });
    if (world.rank() == 0) text = raised;
    barrier(world.group()).wait();
  });
  return text;
}

// Data groups of neighbours, where those of a configuration are strided.
const ProviderLists& data_inside_model() {
  static const ProviderLists lists = {
      .data = {{0, 1, 2, 3}, {4, 5, 6, 7}},
      .model = {{0, 4}, {1, 5}, {2, 6}, {3, 7}},
  };
  return lists;
}

TEST(MeshProvider, GroupsAreUsedAsTheyAre) {
  expect_provided(
      8, data_inside_model(), Config(),
      {{"data_parallel", data_inside_model().data},
       {"sequence_data", data_inside_model().data},
       {"tensor_parallel", data_inside_model().model}},
      [](Mesh& mesh, ListProvider& provider) {
        EXPECT_EQ(&mesh.data_parallel(), provider.data_parallel_group());
        EXPECT_EQ(&mesh.state_group(), provider.data_parallel_group());
        EXPECT_EQ(&mesh.tensor_parallel(), provider.model_parallel_group());
        EXPECT_EQ(mesh.data_parallel_size(), 4);
        EXPECT_EQ(mesh.data_parallel_rank(), provider.data_parallel_rank());
        EXPECT_EQ(mesh.tensor_parallel_size(), 2);
        EXPECT_EQ(mesh.tensor_parallel_rank(), provider.model_parallel_rank());
        EXPECT_EQ(mesh.sequence_parallel_size(), 1);
        EXPECT_EQ(mesh.pipeline_parallel_size(), 1);
      });
}

TEST(MeshProvider, ItsSizesCountBeforeThoseOfTheConfiguration) {
  ::testing::internal::CaptureStderr();
  expect_provided(8, data_inside_model(),
                  config_of(R"("tensor_parallel_size": 4,
                               "data_parallel_size": 2)"),
                  {{"tensor_parallel", data_inside_model().model}},
                  [](Mesh& mesh, ListProvider& /*provider*/) {
                    EXPECT_EQ(mesh.tensor_parallel_size(), 2);
                    EXPECT_EQ(mesh.data_parallel_size(), 4);
                  });
  EXPECT_THAT(::testing::internal::GetCapturedStderr(),
              AllOf(HasSubstr("tensor_parallel_size is 4, but the group "
                              "provider's model-parallel groups have 2"),
                    HasSubstr("data_parallel_size is 2")));
}

TEST(MeshProvider, ItsSequencesCountBeforeThoseOfTheConfiguration) {
  ::testing::internal::CaptureStderr();
  expect_provided(4, {.sequence = {{0, 1}, {2, 3}}},
                  config_of(R"("sequence_parallel_size": 4)"),
                  {{"sequence_parallel", {{0, 1}, {2, 3}}}},
                  [](Mesh& mesh, ListProvider& /*provider*/) {
                    EXPECT_EQ(mesh.sequence_parallel_size(), 2);
                    EXPECT_EQ(mesh.sequence_parallel_rank(), mesh.rank() % 2);
                  });
  EXPECT_THAT(::testing::internal::GetCapturedStderr(),
              HasSubstr("sequence_parallel_size is 4, but the group provider's "
                        "sequence-parallel groups have 2"));
}

TEST(MeshProvider, ASizeOfWhichItHasNoGroupIsAnError) {
  const ProviderLists only_data = {.data = {{0, 1}}};
  EXPECT_THAT(
      provider_error(2, only_data, config_of(R"("tensor_parallel_size": 2)")),
      AllOf(HasSubstr("tensor_parallel_size: expected 1"),
            HasSubstr("no model-parallel groups, but found 2")));
  EXPECT_THAT(
      provider_error(2, only_data, config_of(R"("sequence_parallel_size": 2)")),
      HasSubstr("sequence_parallel_size: expected 1"));
}

TEST(MeshProvider, RanksAndSizesAre0And1WithoutAGroup) {
  run_ranks(1, [](World& world) {
    const ListProvider provider(world, {.data = {{0}}});
    EXPECT_EQ(provider.model_parallel_group(), nullptr);
    EXPECT_EQ(provider.model_parallel_rank(), 0);
    EXPECT_EQ(provider.model_parallel_world_size(), 1);
    EXPECT_EQ(provider.pipeline_parallel_world_size(), 1);
    EXPECT_EQ(provider.sequence_parallel_world_size(), 1);
    EXPECT_EQ(provider.sequence_parallel_rank(), 0);
  });
}

TEST(MeshProvider, ShardGroupsAndSecondaryShardsStayInsideOfItsDataGroups) {
  expect_provided(8, data_inside_model(), stage3(R"("mics_shard_size": 2)"),
                  {{"mics_shard", {{0, 1}, {2, 3}, {4, 5}, {6, 7}}},
                   {"mics_replica", {{0, 2}, {1, 3}, {4, 6}, {5, 7}}}});
  expect_provided(6, {.data = {{0, 3}, {1, 4}, {2, 5}}},
                  stage3(R"("zero_hpz_partition_size": 2)"),
                  {{"secondary_shard", {{0, 3}, {1, 4}, {2, 5}}}});
  const ScopedNodeSize nodes(2);
  expect_provided(8, data_inside_model(), stage3(R"("mics_shard_size": 4,
                            "mics_hierarchical_params_gather": true)"),
                  {{"mics_intra_node", {{0, 1}, {2, 3}, {4, 5}, {6, 7}}},
                   {"mics_inter_node", {{0, 2}, {1, 3}, {4, 6}, {5, 7}}}});
}

TEST(MeshProvider, ExpertsStayInsideOfItsDataGroupsAndKnowItsTensorSize) {
  expect_provided(8, data_inside_model(),
                  config_of(R"("expert_parallel_size": 2)"),
                  {{"expert_2", {{0, 1}, {2, 3}, {4, 5}, {6, 7}}},
                   {"expert_data_2", {{0, 2}, {1, 3}, {4, 6}, {5, 7}}}},
                  [](Mesh& mesh, ListProvider& /*provider*/) {
                    EXPECT_EQ(mesh.expert_tensor_parallel_size(), 2);
                  });
  // The layout that a configuration with a tensor size has.
  expect_provided(8,
                  {.data = {{0, 2, 4, 6}, {1, 3, 5, 7}},
                   .model = {{0, 1}, {2, 3}, {4, 5}, {6, 7}}},
                  config_of(R"("expert_parallel_size": 2)"),
                  {{"expert_2", {{0, 2}, {4, 6}, {1, 3}, {5, 7}}},
                   {"expert_data_2", {{0, 4}, {2, 6}, {1, 5}, {3, 7}}}});
}

TEST(MeshProvider, ExpertsStayInsideOfAPipelineStage) {
  expect_provided(8,
                  {.data = {{0, 1, 2, 3}, {4, 5, 6, 7}},
                   .pipeline = {{0, 4}, {1, 5}, {2, 6}, {3, 7}}},
                  config_of(R"("expert_parallel_size": 2)"),
                  {{"expert_data_2", {{0, 2}, {1, 3}, {4, 6}, {5, 7}}},
                   {"expert_2", {{0, 1}, {2, 3}, {4, 5}, {6, 7}}},
                   {"pipeline_parallel", {{0, 4}, {1, 5}, {2, 6}, {3, 7}}}},
                  [](Mesh& mesh, ListProvider& /*provider*/) {
                    EXPECT_EQ(mesh.pipeline_parallel_size(), 2);
                    EXPECT_EQ(mesh.expert_tensor_parallel_size(), 1);
                  });
}

TEST(MeshProvider, StateIsShardedOverItsSequenceDataGroup) {
  expect_provided(
      4,
      {.data = {{0, 2}, {1, 3}},
       .sequence = {{0, 1}, {2, 3}},
       .sequence_data = {{0, 1, 2, 3}}},
      Config(),
      {{"data_parallel", {{0, 2}, {1, 3}}},
       {"sequence_parallel", {{0, 1}, {2, 3}}},
       {"sequence_data", {{0, 1, 2, 3}}}},
      [](Mesh& mesh, ListProvider& provider) {
        EXPECT_EQ(&mesh.state_group(), provider.sequence_data_parallel_group());
        EXPECT_EQ(&mesh.sequence_parallel(),
                  provider.sequence_parallel_group());
        EXPECT_EQ(&mesh.data_parallel(), provider.data_parallel_group());
        EXPECT_EQ(mesh.sequence_parallel_rank(), mesh.rank() % 2);
        EXPECT_EQ(mesh.data_parallel_size(), 2);
      });
}

TEST(MeshProvider, ADataGroupWithWholeSequencesIsWhereStateIsSharded) {
  ::testing::internal::CaptureStderr();
  expect_provided(
      4, {.data = {{0, 1, 2, 3}}, .sequence = {{0, 1}, {2, 3}}},
      config_of(R"("data_parallel_size": 2)"),
      {{"sequence_data", {{0, 1, 2, 3}}}, {"data_parallel", {{0, 2}, {1, 3}}}},
      [](Mesh& mesh, ListProvider& provider) {
        EXPECT_EQ(&mesh.state_group(), provider.data_parallel_group());
        EXPECT_EQ(mesh.data_parallel_size(), 2);
      });
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "");
}

TEST(MeshProvider, OfSequencesOnlyHasDataGroupsMadeBetweenThem) {
  const ProviderLists sequences = {.sequence = {{0, 1, 2}, {3, 4, 5}}};
  const GroupLists groups = {{"sequence_data", {all_ranks(6)}},
                             {"data_parallel", {{0, 3}, {1, 4}, {2, 5}}},
                             {"sequence_parallel", sequences.sequence}};
  const auto check = [](Mesh& mesh, ListProvider& provider) {
    EXPECT_EQ(provider.data_parallel_group(), nullptr);
    EXPECT_EQ(mesh.data_parallel_size(), 2);
    EXPECT_EQ(mesh.data_parallel_rank(), mesh.rank() / 3);
    EXPECT_EQ(mesh.tensor_parallel_size(), 1);
  };
  expect_provided(6, sequences, Config(), groups, check);
  ProviderLists joined = sequences;
  joined.sequence_data = {all_ranks(6)};
  expect_provided(6, joined, Config(), groups, check);
}

TEST(MeshProvider, OfSequencesOfOneRankIsTheWorld) {
  const ProviderLists sequences = {.sequence = {{0}, {1}}};
  const auto check = [](Mesh& mesh, ListProvider& /*provider*/) {
    EXPECT_EQ(&mesh.state_group(), &mesh.data_parallel());
  };
  expect_provided(2, sequences, Config(), {{"data_parallel", {{0, 1}}}}, check);
  expect_provided(2, {.sequence = {{0}, {1}}, .sequence_data = {{0, 1}}},
                  Config(), {{"data_parallel", {{0, 1}}}}, check);
}

TEST(MeshProvider, KeepsItsGroupsWhenTheMeshEnds) {
  run_ranks(2, [](World& world) {
    ListProvider provider(world, {.data = {{0, 1}}});
    {
      Mesh mesh(world, Config(), provider);
      mesh.destroy("data_parallel");
      EXPECT_EQ(mesh.find("sequence_data"), nullptr);
      barrier(*provider.data_parallel_group()).wait();
    }
    barrier(*provider.data_parallel_group()).wait();
    const Mesh again(world, Config(), provider);
    expect_in(again, {{"data_parallel", {{0, 1}}}});
  });
}

TEST(MeshProviderErrors, NeitherDataNorSequenceGroups) {
  EXPECT_THAT(provider_error(2, {.model = {{0, 1}}}), HasSubstr("neither"));
}

TEST(MeshProviderErrors, AKindThatOnlySomeRanksHave) {
  EXPECT_THAT(provider_error(3, {.data = {{0, 1, 2}}, .model = {{0, 1}}}),
              HasSubstr("of ranks 0 and 2 only one has a model-parallel"));
}

TEST(MeshProviderErrors, RanksThatDisagreeAboutTheirGroup) {
  EXPECT_THAT(provider_error(3, {.data = {{0, 1}, {1, 2}}}),
              AllOf(HasSubstr("data-parallel group that begins with rank 0"),
                    HasSubstr("those that name it as theirs are [0]")));
}

TEST(MeshProviderErrors, SequenceGroupsAcrossDataGroupsWithoutJoinedOnes) {
  EXPECT_THAT(
      provider_error(4,
                     {.data = {{0, 2}, {1, 3}}, .sequence = {{0, 1}, {2, 3}}}),
      AllOf(HasSubstr("expected each sequence-parallel group inside of one"),
            HasSubstr("give those that join data and sequence groups")));
}

TEST(MeshProviderErrors, SizesThatDoNotMultiply) {
  EXPECT_THAT(provider_error(4, {.data = {{0}, {1}, {2}, {3}},
                                 .sequence = {{0, 1}, {2, 3}},
                                 .sequence_data = {{0, 1, 2, 3}}}),
              HasSubstr("the data-parallel size 1 * the sequence-parallel size "
                        "2 must be the size"));
  EXPECT_THAT(
      provider_error(3, {.data = {{0, 1, 2}}, .sequence = {{0, 1}, {2}}}),
      HasSubstr("sequence-parallel groups of one size but found 2 and 1"));
}

TEST(RankListExchange, GivesTheListsOfAllRanksInTheOrderOfTheGroups) {
  run_ranks(4, [](World& world) {
    const auto backwards = world.new_group("backwards", {3, 1});
    const auto forwards = world.new_group("forwards", {0, 2});
    const Group* own = backwards ? backwards.get() : forwards.get();
    const auto lists = exchange_rank_lists(
        world, {{"pair", own}, {"none", nullptr}, {"all", &world.group()}});
    ASSERT_EQ(lists.size(), 3);
    EXPECT_EQ(lists[0], (RankLists{{0, 2}, {3, 1}}));
    EXPECT_TRUE(lists[1].empty());
    EXPECT_EQ(lists[2], (RankLists{{0, 1, 2, 3}}));
  });
}

TEST(MeshProviderErrors, ModelGroupsOfRanksThatShareTheState) {
  const auto text =
      provider_error(4, {.data = {{0, 1, 2, 3}}, .model = {{0, 1}, {2, 3}}});
  EXPECT_THAT(text, HasSubstr("model-parallel"));
  EXPECT_THAT(text, HasSubstr("same part of the model"));
}

}  // namespace
}  // namespace nfold
