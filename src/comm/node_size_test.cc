#include "comm/node_size.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

#include "testing/process_world.h"
#include "testing/raised_text.h"
#include "testing/thread_world.h"

namespace nfold {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr char kVariable[] = "NDEV_PER_NODE";

class DevicesPerNodeTest : public ::testing::Test {
 protected:
  DevicesPerNodeTest() { ::unsetenv(kVariable); }
  ~DevicesPerNodeTest() override { ::unsetenv(kVariable); }
};

TEST_F(DevicesPerNodeTest, AreTheRanksOfAHost) {
  run_ranks(3, [](World& world) { EXPECT_EQ(devices_per_node(world), 3); });
}

TEST_F(DevicesPerNodeTest, TheVariableOverridesTheHosts) {
  ::setenv(kVariable, "2", 1);
  run_ranks(3, [](World& world) { EXPECT_EQ(devices_per_node(world), 2); });
}

TEST_F(DevicesPerNodeTest, AVariableThatIsNoPositiveIntegerIsAnError) {
  for (const char* text : {"0", "-1", "two", "2x", "", " 2", "99999999999"}) {
    ::setenv(kVariable, text, 1);
    run_ranks(1, [&](World& world) {
      EXPECT_THAT(
          text_of<c10::ValueError>([&] { devices_per_node(world); }),
          AllOf(HasSubstr("NDEV_PER_NODE: expected a number of devices"),
                HasSubstr(fmt::format("but found '{}'", text))));
    });
  }
}

// Ranks 0 and 1 on one host, the last on another.
void join_hosts_left_and_right() {
  const bool is_last = std::getenv("RANK") == std::string("2");
  ::setenv("NFOLD_HOST", is_last ? "right" : "left", 1);
  const World world = World::from_environment();
  EXPECT_THAT(text_of<c10::ValueError>([&] { devices_per_node(world); }),
              AllOf(HasSubstr("2 on host left (rank 0)"),
                    HasSubstr("1 on host right (rank 2)")));
}

const ProcessBody kPartialNodes("PartialNodes", join_hosts_left_and_right);

TEST_F(DevicesPerNodeTest, HostsWithDifferentNumbersOfRanksAreAnError) {
  ProcessWorld ranks("PartialNodes", 3);
  for (const auto& rank : ranks.wait())
    EXPECT_EQ(rank.exit_code, 0) << rank.output;
}

TEST(AgreedNodeSize, IsThatOfEveryHost) {
  EXPECT_EQ(agreed_node_size({{"a", 1}}), 1);
  EXPECT_EQ(agreed_node_size({{"a", 2}, {"a", 2}, {"b", 2}, {"b", 2}}), 2);
  // A launcher may count two agents of one host as two nodes.
  EXPECT_EQ(agreed_node_size({{"a", 2}, {"a", 2}, {"a", 2}, {"a", 2}}), 2);
}

TEST(AgreedNodeSize, PartialNodesAreAnErrorThatNamesBothHosts) {
  const auto text = text_of<c10::ValueError>(
      [] { agreed_node_size({{"left", 2}, {"left", 2}, {"right", 1}}); });
  EXPECT_THAT(text, AllOf(HasSubstr("partial nodes"),
                          HasSubstr("2 on host left (rank 0)"),
                          HasSubstr("1 on host right (rank 2)")));
}

TEST(AgreedNodeSize, AVariableThatOnlySomeRanksHaveIsAnError) {
  const auto text = text_of<c10::ValueError>(
      [] { agreed_node_size({{"a", 2}, {"a", 1, true}}); });
  EXPECT_THAT(text, HasSubstr("1 on host a (rank 1, NDEV_PER_NODE)"));
}

TEST(AgreedNodeSize, RanksDealtOutOverTheHostsAreAnError) {
  const auto text = text_of<c10::ValueError>(
      [] { agreed_node_size({{"a", 2}, {"b", 2}, {"a", 2}, {"b", 2}}); });
  EXPECT_THAT(text, AllOf(HasSubstr("expected ranks 0 to 1 on one host"),
                          HasSubstr("rank 0 on a and rank 1 on b")));
  EXPECT_EQ(agreed_node_size({{"a", 2, true}, {"b", 2, true}}), 2);
}

}  // namespace
}  // namespace nfold
