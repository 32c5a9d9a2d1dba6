#include "train/launch/job_shape.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "nfold/errors.h"

namespace nfold::train {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

using Variables = std::map<std::string, std::string>;

JobShape second_of_three_hosts() {
  return {.ranks_per_host = 4,
          .num_hosts = 3,
          .host_number = 1,
          .master_addr = "node0",
          .master_port = 1234};
}

std::string refusal_of(const JobShape& shape) {
  try {
    check(shape);
  } catch (const c10::ValueError& error) {
    return message_of(error);
  }
  return "accepted";
}

TEST(JobShape, RanksOfALaterHostAreCountedOn) {
  EXPECT_EQ(refusal_of(second_of_three_hosts()), "accepted");
  EXPECT_EQ(variables_of(second_of_three_hosts(), 3),
            (Variables{{"RANK", "7"},
                       {"LOCAL_RANK", "3"},
                       {"WORLD_SIZE", "12"},
                       {"LOCAL_WORLD_SIZE", "4"},
                       {"GROUP_RANK", "1"},
                       {"GROUP_WORLD_SIZE", "3"},
                       {"MASTER_ADDR", "node0"},
                       {"MASTER_PORT", "1234"}}));
}

TEST(JobShape, OneHostNeedsNeitherNumberNorAddress) {
  const JobShape shape{.ranks_per_host = 2, .master_port = 5};
  EXPECT_EQ(refusal_of(shape), "accepted");
  EXPECT_EQ(variables_of(shape, 1), (Variables{{"RANK", "1"},
                                               {"LOCAL_RANK", "1"},
                                               {"WORLD_SIZE", "2"},
                                               {"LOCAL_WORLD_SIZE", "2"},
                                               {"GROUP_RANK", "0"},
                                               {"GROUP_WORLD_SIZE", "1"},
                                               {"MASTER_ADDR", "127.0.0.1"},
                                               {"MASTER_PORT", "5"}}));
}

TEST(JobShape, ANumberOutOfRangeIsNamedWithTheRange) {
  JobShape shape = second_of_three_hosts();
  shape.host_number = 3;
  EXPECT_THAT(refusal_of(shape),
              AllOf(HasSubstr("--node-rank 3"), HasSubstr("0 to 2")));
  EXPECT_THAT(refusal_of({.host_number = 1, .master_addr = "node0"}),
              AllOf(HasSubstr("--node-rank 1"), HasSubstr("--nnodes N")));
  EXPECT_THAT(refusal_of({.ranks_per_host = 0}), HasSubstr("at least 1"));
  EXPECT_THAT(refusal_of({.num_hosts = 0}), HasSubstr("--nnodes is 0"));
}

TEST(JobShape, SeveralHostsNeedNumberAndAddress) {
  JobShape shape = second_of_three_hosts();
  shape.host_number = -1;
  EXPECT_THAT(refusal_of(shape), HasSubstr("without --node-rank"));
  shape = second_of_three_hosts();
  shape.master_addr.clear();
  EXPECT_THAT(refusal_of(shape), HasSubstr("without --master-addr"));
}

}  // namespace
}  // namespace nfold::train
