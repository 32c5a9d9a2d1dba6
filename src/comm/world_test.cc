#include "nfold/world.h"

#include <ATen/ops/full.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <functional>
#include <string>
#include <thread>
#include <torch/csrc/distributed/c10d/HashStore.hpp>
#include <vector>

#include "comm/world_rendezvous.h"
#include "nfold/collectives.h"
#include "nfold/errors.h"

namespace nfold {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr std::chrono::milliseconds kShort(200);

// Runs `body` on a thread per rank; returns each rank's error, or "".
std::vector<std::string> errors_of_ranks(int size,
                                         const std::function<void(int)>& body) {
  std::vector<std::string> errors(static_cast<std::size_t>(size));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank] {
      try {
        body(rank);
      } catch (const std::exception& error) {
        errors[static_cast<std::size_t>(rank)] = message_of(error);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return errors;
}

void run_worlds(int size, const std::function<void(const World&)>& body) {
  const auto store = c10::make_intrusive<c10d::HashStore>();
  const auto errors = errors_of_ranks(
      size, [&](int rank) { body(World::from_store(store, rank, size)); });
  for (const std::string& error : errors) EXPECT_EQ(error, "");
}

float sum_of_ranks(Group& group, int rank) {
  at::Tensor value = at::full({1}, static_cast<float>(rank));
  all_reduce(group, value).wait();
  return value.item<float>();
}

TEST(World, EveryRankIsInTheGroupOfAll) {
  run_worlds(3, [](const World& world) {
    EXPECT_EQ(world.size(), 3);
    EXPECT_EQ(world.group().name(), "world");
    EXPECT_EQ(world.group().rank(), world.rank());
    EXPECT_EQ(world.group().global_ranks(), (std::vector<int>{0, 1, 2}));
    EXPECT_EQ(sum_of_ranks(world.group(), world.rank()), 3.0f);
  });
}

TEST(World, RanksOfOneHostCountThemselves) {
  run_worlds(3, [](const World& world) {
    EXPECT_EQ(world.local_rank(), world.rank());
    EXPECT_EQ(world.local_size(), 3);
    EXPECT_EQ(world.host(), host_identity());
    EXPECT_EQ(world.launcher(), Launcher::kNone);
  });
}

TEST(World, OneRankNeedsNobody) {
  const auto store = c10::make_intrusive<c10d::HashStore>();
  const World world = World::from_store(store, 0, 1);
  EXPECT_EQ(world.group().size(), 1);
  EXPECT_EQ(sum_of_ranks(world.group(), 5), 5.0f);
}

TEST(World, AGroupHasItsRanksInTheGivenOrder) {
  run_worlds(3, [](const World& world) {
    const auto group = world.new_group("reversed", {2, 0});
    if (world.rank() == 1) {
      EXPECT_EQ(group, nullptr);
      return;
    }
    ASSERT_NE(group, nullptr);
    EXPECT_EQ(group->name(), "reversed");
    EXPECT_EQ(group->rank(), world.rank() == 2 ? 0 : 1);
    EXPECT_EQ(sum_of_ranks(*group, world.rank()), 2.0f);
  });
}

TEST(World, GroupNamesMayRepeat) {
  run_worlds(2, [](const World& world) {
    const auto first = world.new_group("pair", {0, 1});
    const auto second = world.new_group("pair", {0, 1});
    const auto alone = world.new_group("alone", {world.rank()});
    EXPECT_EQ(sum_of_ranks(*second, world.rank()), 1.0f);
    EXPECT_EQ(sum_of_ranks(*first, world.rank()), 1.0f);
    EXPECT_EQ(alone->size(), 1);
  });
}

TEST(World, DisjointGroupsOfOneNameDoNotMeet) {
  run_worlds(4, [](const World& world) {
    const bool is_even = world.rank() % 2 == 0;
    const auto even = world.new_group("parity", {0, 2});
    const auto odd = world.new_group("parity", {1, 3});
    EXPECT_EQ(even != nullptr, is_even);
    EXPECT_EQ(odd != nullptr, !is_even);
    EXPECT_EQ(sum_of_ranks(is_even ? *even : *odd, world.rank()),
              is_even ? 2.0f : 4.0f);
  });
}

TEST(World, WrongGroupRanksAreNamed) {
  const auto store = c10::make_intrusive<c10d::HashStore>();
  const World world = World::from_store(store, 0, 1);
  const auto error_of = [&](const std::vector<int>& ranks) -> std::string {
    try {
      world.new_group("odd", ranks);
    } catch (const c10::ValueError& error) {
      return message_of(error);
    }
    return "no error";
  };
  EXPECT_THAT(error_of({}), HasSubstr("group 'odd' has no ranks"));
  EXPECT_THAT(error_of({0, 1}),
              AllOf(HasSubstr("[0, 1]"), HasSubstr("0 to 0")));
  EXPECT_THAT(error_of({-1}), HasSubstr("[-1]"));
  EXPECT_THAT(error_of({0, 0}), HasSubstr("twice"));
}

TEST(World, WrongArgumentsAreRejected) {
  const auto store = c10::make_intrusive<c10d::HashStore>();
  EXPECT_THROW(World::from_store(store, 2, 2), c10::ValueError);
  EXPECT_THROW(World::from_store(store, -1, 2), c10::ValueError);
  EXPECT_THROW(World::from_store(store, 0, 0), c10::ValueError);
  EXPECT_THROW(World::from_store(nullptr, 0, 1), c10::ValueError);
}

TEST(World, AWorldMayMove) {
  const auto store = c10::make_intrusive<c10d::HashStore>();
  World first = World::from_store(store, 0, 1);
  const World second = std::move(first);
  EXPECT_EQ(second.group().size(), 1);
}

TEST(Rendezvous, NamesTheRanksThatDoNotCome) {
  const auto store = c10::make_intrusive<c10d::HashStore>();
  WorldOptions options;
  options.rendezvous_timeout = kShort;
  const auto errors = errors_of_ranks(2, [&](int rank) {
    meet(*store, {rank, 4, "host", "head:29500"}, options);
  });
  for (int rank = 0; rank < 2; ++rank) {
    EXPECT_THAT(errors[static_cast<std::size_t>(rank)],
                AllOf(HasSubstr("[rank " + std::to_string(rank) + "] 2 of 4"),
                      HasSubstr("head:29500"), HasSubstr("0.2 s"),
                      HasSubstr("missing: 2, 3.")));
  }
}

TEST(Rendezvous, NamesOnlySomeOfManyMissingRanks) {
  const auto store = c10::make_intrusive<c10d::HashStore>();
  WorldOptions options;
  options.rendezvous_timeout = kShort;
  const auto errors = errors_of_ranks(1, [&](int rank) {
    meet(*store, {rank, 1024, "host", "head:29500"}, options);
  });
  EXPECT_THAT(errors[0], AllOf(HasSubstr("1 of 1024 ranks"),
                               HasSubstr("missing: 1, 2, 3, 4, 5, 6, 7, 8, "
                                         "....")));
}

TEST(Rendezvous, TwoProcessesCannotBeOneRank) {
  const auto store = c10::make_intrusive<c10d::HashStore>();
  meet(*store, {0, 1, "host", "head:29500"}, {});
  const auto errors = errors_of_ranks(
      1, [&](int rank) { meet(*store, {rank, 1, "host", "head:29500"}, {}); });
  EXPECT_THAT(errors[0],
              AllOf(HasSubstr("already rank 0"), HasSubstr("MASTER_PORT")));
}

TEST(Rendezvous, RanksThatCountDifferentlyFindOut) {
  const auto store = c10::make_intrusive<c10d::HashStore>();
  WorldOptions options;
  options.rendezvous_timeout = kShort;
  const auto errors = errors_of_ranks(2, [&](int rank) {
    meet(*store, {rank, rank == 0 ? 2 : 3, "host", "head:29500"}, options);
  });
  EXPECT_THAT(errors[0], HasSubstr("rank 1 expects 3"));
  EXPECT_THAT(errors[1], HasSubstr("missing: 2."));
}

LauncherEnvironment job_at(int rank, int port) {
  LauncherEnvironment job;
  job.launcher = Launcher::kTorchrun;
  job.rank = rank;
  job.size = 2;
  job.master_addr = "127.0.0.1";
  job.master_port = port;
  return job;
}

TEST(Rendezvous, APortInUseIsNamedWithTheRemedy) {
  WorldOptions options;
  options.rendezvous_timeout = kShort;
  const LauncherEnvironment job =
      job_at(0, port_of_job("in use" + std::to_string(::getpid())));
  const auto first = connect_store(job, options);
  const auto errors =
      errors_of_ranks(1, [&](int) { connect_store(job, options); });
  EXPECT_THAT(errors[0], AllOf(HasSubstr("[rank 0] cannot serve"),
                               HasSubstr(std::to_string(job.master_port)),
                               HasSubstr("2 ranks"), HasSubstr("in use"),
                               HasSubstr("MASTER_PORT")));
}

TEST(Rendezvous, AStoreThatNobodyServesIsNamed) {
  WorldOptions options;
  options.rendezvous_timeout = kShort;
  const auto errors =
      errors_of_ranks(1, [&](int) { connect_store(job_at(1, 1), options); });
  EXPECT_THAT(errors[0],
              AllOf(HasSubstr("[rank 1] no rendezvous of 2 ranks"),
                    HasSubstr("127.0.0.1:1"), HasSubstr("Does rank 0 run")));
}

TEST(Rendezvous, AttemptsAtOneAddressDoNotMeet) {
  WorldOptions options;
  options.rendezvous_timeout = std::chrono::seconds(10);
  LauncherEnvironment job =
      job_at(0, port_of_job("attempts" + std::to_string(::getpid())));
  job.attempt = "run.0";
  const auto first = connect_store(job, options);
  job.rank = 1;
  job.attempt = "run.1";
  const auto second = connect_store(job, options);
  first->set("key", std::vector<std::uint8_t>{1});
  EXPECT_FALSE(second->check({"key"}));
}

TEST(Rendezvous, AHostMayBeMadeUp) {
  EXPECT_EQ(host_override(), "");
  const std::string real = host_identity();
  EXPECT_THAT(real, HasSubstr(":"));
  ::setenv("NFOLD_HOST", "node1", 1);
  EXPECT_EQ(host_override(), "node1");
  EXPECT_EQ(host_identity(), "node1");
  EXPECT_EQ(host_identity("node2"), "node2");
  EXPECT_EQ(host_name(), "node1");
  ::unsetenv("NFOLD_HOST");
  EXPECT_EQ(host_identity(), real);
}

TEST(Rendezvous, TellsTheHostsOfAllRanks) {
  const auto store = c10::make_intrusive<c10d::HashStore>();
  const auto errors = errors_of_ranks(2, [&](int rank) {
    const std::string number = std::to_string(rank);
    const auto hosts = meet(
        *store, {rank, 2, "id" + number, "head:29500", "name" + number}, {});
    ASSERT_EQ(hosts.size(), 2u);
    EXPECT_EQ(hosts[1].identity, "id1");
    EXPECT_EQ(hosts[1].name, "name1");
  });
  for (const std::string& error : errors) EXPECT_EQ(error, "");
}

TEST(Rendezvous, TheWayToAnAddressHasAnAddressOfThisHost) {
  EXPECT_EQ(own_address_towards("127.0.0.1", 29500), "127.0.0.1");
  EXPECT_EQ(own_address_towards("127.0.0.7", 29500), "127.0.0.1");
  EXPECT_EQ(own_address_towards("no.such.host.invalid", 29500), "");
}

TEST(Rendezvous, AServerDoesNotWaitLongForTheDead) {
  const auto store = c10::make_intrusive<c10d::HashStore>();
  say_goodbye(store, 0, 2, kShort);
  say_goodbye(store, 1, 2, kShort);
  EXPECT_EQ(store->add("goodbye", 0), 2);
}

}  // namespace
}  // namespace nfold
