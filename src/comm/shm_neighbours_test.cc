// Jobs beside each other on one machine: two at once, those of two users, and
// in containers with a /dev/shm each.
#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <grp.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <numeric>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "comm/shared_array.h"
#include "comm/shared_segment.h"
#include "nfold/collectives.h"
#include "nfold/errors.h"
#include "nfold/world.h"
#include "testing/process_world.h"
#include "testing/raised_text.h"
#include "testing/skip.h"

namespace nfold {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

using Variables = std::map<std::string, std::string>;

constexpr uid_t kOtherUser = 65534;  // nobody, who owns nothing

// What every test of other users begins with.
#define SKIP_UNLESS_ROOT() \
  if (::geteuid() != 0) NFOLD_SKIP("only root may become another user")

// This process goes on as that user, all of its threads.
void become(uid_t user) {
  if (::setgroups(0, nullptr) != 0 || ::setresgid(user, user, user) != 0 ||
      ::setresuid(user, user, user) != 0) {
    throw std::runtime_error("cannot become another user");
  }
}

void become_user_of_environment() {
  if (const char* user = std::getenv("RUN_AS")) become(std::atoi(user));
}

// A new /dev/shm for this thread, and for the threads and processes that it
// starts: what a container has. Only system calls, so fit for a forked child.
bool enter_own_shared_memory(const char* options) {
  return ::unshare(CLONE_NEWNS) == 0 &&
         ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0 &&
         ::mount("tmpfs", "/dev/shm", "tmpfs", 0, options) == 0;
}

constexpr char kForAll[] = "mode=1777,size=64m";
constexpr char kForRoot[] = "mode=0755,size=64m";

bool may_enter_own_shared_memory() {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(enter_own_shared_memory(kForAll) ? 0 : 1);
  int status = 1;
  return ::waitpid(child, &status, 0) == child && status == 0;
}

#define SKIP_UNLESS_CONTAINERS()      \
  if (!may_enter_own_shared_memory()) \
  NFOLD_SKIP("no permission to mount in a name space")

// Calls the body with a /dev/shm that nobody else uses.
void in_own_shared_memory(const char* options,
                          const std::function<void()>& body) {
  std::thread([&] {
    try {
      ASSERT_TRUE(enter_own_shared_memory(options));
      body();
    } catch (const std::exception& error) {
      ADD_FAILURE() << message_of(error);
    }
  }).join();
}

std::string outputs_of(ProcessWorld& ranks, int exit_code) {
  std::string outputs;
  for (const auto& rank : ranks.wait()) {
    EXPECT_EQ(rank.exit_code, exit_code) << rank.output;
    outputs += rank.output;
  }
  return outputs;
}

float sum_over(Group& group, float value) {
  auto tensor = at::full({1}, value);
  all_reduce(group, tensor).wait();
  return tensor.item<float>();
}

std::vector<int> all_of(const World& world) {
  std::vector<int> ranks(static_cast<std::size_t>(world.size()));
  std::iota(ranks.begin(), ranks.end(), 0);
  return ranks;
}

// Makes groups and arrays, each in new segments, until the file STOP exists,
// and checks that what it reads there is the VALUE of this job.
const ProcessBody kMakesGroups("ShmMakesGroups", [] {
  become_user_of_environment();
  auto world = World::from_environment();
  const auto value = static_cast<float>(std::atof(std::getenv("VALUE")));
  const auto ranks = all_of(world);
  const auto size = static_cast<float>(world.size());
  bool is_over = false;
  for (int round = 0; !is_over; ++round) {
    const auto group = world.new_group(fmt::format("round {}", round), ranks);
    ASSERT_STREQ(group->transport(), "shm");
    ASSERT_EQ(sum_over(*group, value), value * size);
    const auto array =
        SharedArray::make(*group, ranks.size() * sizeof(float), "array");
    ASSERT_TRUE(array);
    auto* parts = reinterpret_cast<float*>(array->data());
    parts[world.rank()] = value;
    array->publish();
    array->await_versions();
    for (const int rank : ranks) ASSERT_EQ(parts[rank], value);
    const bool is_asked = world.rank() == 0 && fs::exists(std::getenv("STOP"));
    is_over = sum_over(*group, is_asked ? 1.0f : 0.0f) > 0;
    if (round == 20) {
      std::printf("under way\n");
      std::fflush(stdout);
    }
  }
});

// Two jobs of kMakesGroups, which both end well.
void expect_two_jobs_to_work(const Variables& more_of_second) {
  // Where both users may look.
  const fs::path stop =
      fmt::format("/dev/shm/nfold_neighbours_test_{}", ::getpid());
  Variables variables{
      {"NFOLD_TRANSPORT", "shm"}, {"STOP", stop}, {"VALUE", "3"}};
  ProcessWorld first("ShmMakesGroups", 2, {.environment = variables});
  variables["VALUE"] = "5";
  variables.insert(more_of_second.begin(), more_of_second.end());
  ProcessWorld second("ShmMakesGroups", 2, {.environment = variables});
  for (auto* job : {&first, &second}) {
    for (int rank = 0; rank < 2; ++rank) {
      job->wait_for_output(rank, "under way");
    }
  }
  std::ofstream(stop).close();
  for (auto* job : {&first, &second}) {
    EXPECT_THAT(outputs_of(*job, 0), Not(HasSubstr("warning")));
  }
  fs::remove(stop);
}

TEST(ShmNeighbours, TwoJobsAtOnceKeepApart) { expect_two_jobs_to_work({}); }

TEST(ShmNeighbours, TwoJobsOfTwoUsersAtOnceKeepApart) {
  SKIP_UNLESS_ROOT();
  expect_two_jobs_to_work({{"RUN_AS", std::to_string(kOtherUser)}});
}

// A file as a killed job of the user leaves it.
fs::path leave_stale_segment(uid_t name, uid_t owner) {
  const pid_t gone = ::fork();
  if (gone == 0) ::_exit(0);
  ::waitpid(gone, nullptr, 0);
  const fs::path path =
      fmt::format("/dev/shm/nfold.{}.{}.of{}", name, gone, owner);
  std::ofstream(path) << "x";
  EXPECT_EQ(::chmod(path.c_str(), 0600), 0);
  EXPECT_EQ(::chown(path.c_str(), owner, owner), 0);
  const timespec long_ago[2] = {{1000, 0}, {1000, 0}};
  EXPECT_EQ(::utimensat(AT_FDCWD, path.c_str(), long_ago, 0), 0);
  return path;
}

const ProcessBody kCleansUp("ShmCleansUp", [] {
  become_user_of_environment();
  std::printf("removed %d\n", remove_stale_segments());
});

const ProcessBody kOpensSegment("ShmOpensSegment", [] {
  become_user_of_environment();
  SharedSegment::open(std::getenv("SEGMENT"), 100);
});

TEST(ShmNeighbours, AUserRemovesOnlyTheirOwnStaleSegments) {
  SKIP_UNLESS_ROOT();
  SKIP_UNLESS_CONTAINERS();
  in_own_shared_memory(kForAll, [] {
    const auto made = SharedSegment::create(100);
    const auto of_root = leave_stale_segment(0, 0);
    const auto under_false_name = leave_stale_segment(kOtherUser, 0);
    const auto of_other = leave_stale_segment(kOtherUser, kOtherUser);
    ProcessWorld other(
        "ShmCleansUp", 1,
        {.environment = {{"RUN_AS", std::to_string(kOtherUser)}}});
    EXPECT_THAT(outputs_of(other, 0), HasSubstr("removed 1"));
    EXPECT_FALSE(fs::exists(of_other));
    EXPECT_TRUE(fs::exists(of_root));
    EXPECT_TRUE(fs::exists(under_false_name));

    const auto again = leave_stale_segment(kOtherUser, kOtherUser);
    EXPECT_EQ(remove_stale_segments(), 2);
    EXPECT_TRUE(fs::exists(again));
    EXPECT_FALSE(fs::exists(of_root));
    EXPECT_TRUE(fs::exists("/dev/shm/" + made.name()));
  });
}

TEST(ShmNeighbours, AUserCannotOpenSegmentsOfAnother) {
  SKIP_UNLESS_ROOT();
  const auto made = SharedSegment::create(100);
  ProcessWorld other("ShmOpensSegment", 1,
                     {.environment = {{"RUN_AS", std::to_string(kOtherUser)},
                                      {"SEGMENT", made.name()}}});
  EXPECT_THAT(outputs_of(other, 1),
              AllOf(HasSubstr(made.name()), HasSubstr("Permission denied"),
                    HasSubstr("NFOLD_TRANSPORT")));
}

// The rank OTHER_RANK, or all where there is none, is of the user RUN_AS.
const ProcessBody kSums("ShmSums", [] {
  const char* other_rank = std::getenv("OTHER_RANK");
  if (other_rank == nullptr || std::string(other_rank) == std::getenv("RANK")) {
    become_user_of_environment();
  }
  auto world = World::from_environment();
  std::printf("transport %s\n", world.group().transport());
  EXPECT_EQ(sum_over(world.group(), static_cast<float>(world.rank() + 1)), 3);
});

TEST(ShmNeighbours, RanksOfTwoUsersInOneJobGoOverGloo) {
  SKIP_UNLESS_ROOT();
  Variables variables{{"RUN_AS", std::to_string(kOtherUser)},
                      {"OTHER_RANK", "1"},
                      {"NFOLD_TRANSPORT", "auto"}};
  ProcessWorld job("ShmSums", 2, {.environment = variables});
  EXPECT_THAT(
      outputs_of(job, 0),
      AllOf(HasSubstr("transport gloo"), Not(HasSubstr("transport shm")),
            HasSubstr("goes over gloo"), HasSubstr("[rank 1]"),
            HasSubstr("Permission denied")));
  variables["NFOLD_TRANSPORT"] = "shm";
  ProcessWorld forced("ShmSums", 2, {.environment = variables});
  for (const auto& rank : forced.wait()) {
    EXPECT_EQ(rank.exit_code, 1);
    EXPECT_THAT(rank.output, HasSubstr("Permission denied"));
  }
}

TEST(ShmNeighbours, AUserWhoMayNotWriteToTheFolderGoesOverGloo) {
  SKIP_UNLESS_ROOT();
  SKIP_UNLESS_CONTAINERS();
  in_own_shared_memory(kForRoot, [] {
    ProcessWorld job("ShmSums", 2,
                     {.environment = {{"RUN_AS", std::to_string(kOtherUser)},
                                      {"NFOLD_TRANSPORT", "auto"}}});
    EXPECT_THAT(outputs_of(job, 0),
                AllOf(HasSubstr("transport gloo"), HasSubstr("cannot create"),
                      HasSubstr("Permission denied")));
  });
}

// Rank 1 is in a container, the others are not.
const ProcessBody kMeetsContainer("ShmMeetsContainer", [] {
  const bool is_apart = std::string(std::getenv("RANK")) == "1";
  if (is_apart) {
    ASSERT_TRUE(enter_own_shared_memory(kForAll));
  }
  auto world = World::from_environment();
  const auto hosts = world.hosts();
  EXPECT_EQ(hosts[0], hosts[2]);
  EXPECT_NE(hosts[0], hosts[1]);
  EXPECT_EQ(world.host(), hosts[static_cast<std::size_t>(world.rank())]);
  const auto number = static_cast<float>(1 << world.rank());
  EXPECT_STREQ(world.group().transport(), "gloo");
  EXPECT_EQ(sum_over(world.group(), number), 7);
  const auto neighbours = world.new_group("neighbours", {0, 2});
  ASSERT_EQ(neighbours == nullptr, is_apart);
  if (neighbours) {
    EXPECT_STREQ(neighbours->transport(), "shm");
    EXPECT_EQ(sum_over(*neighbours, number), 5);
  }
  const auto across = world.new_group("across", {1, 2});
  if (across) {
    EXPECT_STREQ(across->transport(), "gloo");
    EXPECT_EQ(sum_over(*across, number), 6);
  }
  EXPECT_THAT(text_of<c10::ValueError>([&] {
                world.new_group("forced", {0, 1, 2}, Transport::kShm);
              }),
              HasSubstr("are on several hosts"));
  if (is_apart) {
    EXPECT_TRUE(fs::is_empty("/dev/shm"));
  }
  std::printf("met\n");
});

TEST(ShmNeighbours, AContainerWithAFolderOfItsOwnIsAnotherHost) {
  SKIP_UNLESS_CONTAINERS();
  ProcessWorld job("ShmMeetsContainer", 3,
                   {.environment = {{"NFOLD_TRANSPORT", "auto"}}});
  for (const auto& rank : job.wait()) {
    EXPECT_EQ(rank.exit_code, 0) << rank.output;
    EXPECT_THAT(rank.output, HasSubstr("met\n"));
  }
}

}  // namespace
}  // namespace nfold
