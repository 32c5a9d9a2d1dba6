#include "train/mesh_table.h"

#include <c10/util/Exception.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace nfold::train {
namespace {

using ::testing::HasSubstr;

TEST(MeshTable, HasTheRanksOfEachGroupInTheOrderTheyAreMade) {
  Config config;
  config.tensor_parallel_size = 2;
  config.expert_parallel_size = 2;
  EXPECT_EQ(format_mesh(config, {.num_ranks = 8}),
            "8 ranks: 4 data x 1 sequence x 2 tensor\n"
            "\n"
            "group            groups of  ranks\n"
            "data_parallel            4  [0 2 4 6] [1 3 5 7]\n"
            "tensor_parallel          2  [0 1] [2 3] [4 5] [6 7]\n"
            "expert_data_2            2  [0 4] [2 6] [1 5] [3 7]\n"
            "expert_2                 2  [0 2] [4 6] [1 3] [5 7]\n");
}

TEST(MeshTable, FollowsTheMachines) {
  Config config;
  config.zero_optimization.stage = 3;
  config.zero_optimization.mics_shard_size = 4;
  config.zero_optimization.mics_hierarchical_params_gather = true;
  EXPECT_THAT(format_mesh(config, {.num_ranks = 4, .ranks_per_node = 2}),
              HasSubstr("mics_inter_node          2  [0 2] [1 3]\n"));
  EXPECT_THROW(format_mesh(config, {.num_ranks = 4}), c10::ValueError);
}

TEST(MeshTable, LongListsAreCutShort) {
  EXPECT_THAT(format_mesh(Config(), {.num_ranks = 4096, .num_shown = 2}),
              HasSubstr("4096  [0 1 ... 4094 more]\n"));
  Config config;
  config.tensor_parallel_size = 2;
  EXPECT_THAT(format_mesh(config, {.num_ranks = 8, .num_shown = 2}),
              HasSubstr("[0 1] [2 3] ... 2 more\n"));
}

TEST(MeshTable, SizesThatDoNotFitAreErrors) {
  Config config;
  config.tensor_parallel_size = 3;
  EXPECT_THROW(format_mesh(config, {.num_ranks = 8}), c10::ValueError);
}

}  // namespace
}  // namespace nfold::train
