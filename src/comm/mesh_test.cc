#include "nfold/mesh.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "nfold/collectives.h"
#include "nfold/errors.h"
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
