// Ranks that wait for each other in different groups. Run with either
// transport.
#include "comm/stall_watch.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "comm/group_impl.h"
#include "comm/shared_array.h"
#include "nfold/collectives.h"
#include "testing/process_world.h"
#include "testing/raised_text.h"
#include "testing/thread_world.h"

namespace nfold {
namespace {

using ::testing::AllOf;
using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;
using Clock = std::chrono::steady_clock;

// Quicker than by default. The time-out is far away.
const ThreadWorldOptions kQuick{.timeout = std::chrono::minutes(5),
                                .stall_check = std::chrono::milliseconds(200)};

std::string failure_in(Group& group) {
  return text_of<c10::DistBackendError>([&] { barrier(group).wait(); });
}

// One for each rank: it and the next one.
std::vector<std::unique_ptr<Group>> ring_of(const World& world) {
  std::vector<std::unique_ptr<Group>> ring;
  for (int rank = 0; rank < world.size(); ++rank) {
    ring.push_back(world.new_group("ring" + std::to_string(rank),
                                   {rank, (rank + 1) % world.size()}));
  }
  return ring;
}

// Rank r waits in group r for the next rank, which waits in its own.
void expect_ring_ends(int num_ranks, const ThreadWorldOptions& options) {
  const auto start = Clock::now();
  run_ranks(
      num_ranks,
      [&](World& world) {
        const auto ring = ring_of(world);
        auto& own = *ring[static_cast<std::size_t>(world.rank())];
        own.impl().set_label(c10::str("step 12, unshard h.", world.rank()));
        const auto text = failure_in(own);
        EXPECT_THAT(text,
                    StartsWith(c10::str(
                        "[rank ", world.rank(), "] group 'ring", world.rank(),
                        "': barrier #0 (step 12, unshard h.", world.rank(),
                        ") failed: ranks wait for each other")));
        for (int rank = 0; rank < num_ranks; ++rank) {
          EXPECT_THAT(text, HasSubstr(c10::str("rank ", rank, " has waited ")));
          EXPECT_THAT(text, HasSubstr(c10::str(
                                "in group 'ring", rank,
                                "', barrier #0 (step 12, unshard h.", rank,
                                "), which rank ", (rank + 1) % num_ranks,
                                " has not entered")));
        }
        EXPECT_THAT(text, AllOf(HasSubstr("All ranks must issue"),
                                Not(HasSubstr("The first rank"))));
        EXPECT_EQ(text_of<c10::DistBackendError>([&] { barrier(own); }), text);
      },
      options);
  EXPECT_LT(Clock::now() - start, std::chrono::seconds(10));
}

TEST(StallWatch, CrossedWaitsEndWithinTenSecondsByDefault) {
  expect_ring_ends(2, {.timeout = std::chrono::minutes(5)});
}

TEST(StallWatch, EveryRankOfACycleNamesAllOfIt) {
  for (const int num_ranks : {2, 3, 4}) expect_ring_ends(num_ranks, kQuick);
}

TEST(StallWatch, WhoWaitsForACycleIsToldToo) {
  run_ranks(
      3,
      [](World& world) {
        auto a = world.new_group("a", {0, 1});
        auto b = world.new_group("b", {0, 1});
        auto c = world.new_group("c", {1, 2});
        Group& own = *(world.rank() == 0 ? a : world.rank() == 1 ? b : c);
        EXPECT_THAT(
            failure_in(own),
            AllOf(HasSubstr("group 'a', barrier #0, which rank 1 has"),
                  HasSubstr("group 'b', barrier #0, which rank 0 has"),
                  HasSubstr("group 'c', barrier #0, which rank 1 has")));
      },
      kQuick);
}

TEST(StallWatch, ACycleWithoutRankZeroIsFoundWhileThatIsBusy) {
  run_ranks(
      3,
      [](World& world) {
        auto a = world.new_group("a", {1, 2});
        auto b = world.new_group("b", {2, 1});
        if (world.rank() == 0) {
          std::this_thread::sleep_for(std::chrono::seconds(3));
          return;
        }
        EXPECT_THAT(failure_in(world.rank() == 1 ? *a : *b),
                    AllOf(HasSubstr("group 'a'"), HasSubstr("group 'b'"),
                          HasSubstr("ranks wait for each other")));
      },
      kQuick);
}

TEST(StallWatch, ACollectiveUnderWayBehindTheOneWaitedForIsFailedToo) {
  run_ranks(
      2,
      [](World& world) {
        auto a = world.new_group("a", {0, 1});
        auto b = world.new_group("b", {0, 1});
        Group& own = world.rank() == 0 ? *a : *b;
        auto first = all_reduce(own, at::ones({1 << 20}));
        auto second = all_reduce(own, at::ones({8}));
        const auto text =
            text_of<c10::DistBackendError>([&] { second.wait(); });
        EXPECT_THAT(text, HasSubstr("all_reduce #1 of 8 float32, which"));
        EXPECT_EQ(text_of<c10::DistBackendError>([&] { first.wait(); }), text);
      },
      kQuick);
}

// A rank that leaves by an exception waits for what it has issued.
TEST(StallWatch, WaitsOfDestructorsCount) {
  run_ranks(
      2,
      [](World& world) {
        auto a = world.new_group("a", {0, 1});
        auto b = world.new_group("b", {0, 1});
        if (world.rank() == 1) {
          all_reduce(*a, at::ones({8}));  // a Pending that is dropped
          return;
        }
        EXPECT_THAT(failure_in(*b), HasSubstr("rank 1 has waited"));
      },
      kQuick);
}

TEST(StallWatch, WaitsForPartsOfASharedArrayCount) {
  run_ranks(
      2,
      [](World& world) {
        auto group = world.new_group("a", {0, 1}, Transport::kShm);
        auto array = SharedArray::make(*group, 64, "blocks.3");
        array->publish();
        array->await_versions();
        group->impl().set_label("step 4");
        const auto text = text_of<c10::DistBackendError>([&] {
          if (world.rank() == 0) {
            array->begin_update();
          } else {
            barrier(world.group()).wait();
          }
        });
        EXPECT_THAT(
            text,
            AllOf(HasSubstr("rank 0 has waited"),
                  HasSubstr("in group 'a' (step 4): rank 1 has not begun its "
                            "update of blocks.3 (version 1)"),
                  HasSubstr("in group 'world', barrier #0, which rank 0 has")));
      },
      kQuick);
}

TEST(StallWatch, ASlowRankIsNoError) {
  run_ranks(
      3,
      [](World& world) {
        auto a = world.new_group("a", {0, 1, 2});
        if (world.rank() == 1) {
          std::this_thread::sleep_for(std::chrono::seconds(2));
        }
        barrier(*a).wait();
        barrier(world.group()).wait();
      },
      kQuick);
}

// Rank 0 has entered nothing of group b while rank 1 waits there, and rank 1
// nothing of a, but rank 0 only computes.
TEST(StallWatch, ACallerThatComputesBesideItsCollectivesIsNotStuck) {
  run_ranks(
      2,
      [](World& world) {
        auto a = world.new_group("a", {0, 1});
        auto b = world.new_group("b", {0, 1});
        auto tensor = at::ones({8});
        if (world.rank() == 0) {
          auto pending = all_reduce(*a, tensor);
          std::this_thread::sleep_for(std::chrono::seconds(2));
          barrier(*b).wait();
          pending.wait();
        } else {
          barrier(*b).wait();
          all_reduce(*a, tensor).wait();
        }
        EXPECT_EQ(tensor[0].item<float>(), 2);
      },
      kQuick);
}

TEST(StallWatch, AnotherThreadThatMayStillIssueKeepsARankGoing) {
  run_ranks(
      2,
      [](World& world) {
        auto a = world.new_group("a", {0, 1});
        auto b = world.new_group("b", {0, 1});
        if (world.rank() == 1) {
          barrier(*b).wait();
          barrier(*b).wait();
          barrier(*a).wait();
          return;
        }
        std::thread other([&] {
          barrier(*b).wait();
          std::this_thread::sleep_for(std::chrono::seconds(2));
          barrier(*b).wait();
        });
        barrier(*a).wait();
        other.join();
      },
      kQuick);
}

TEST(StallWatch, OffItLeavesEverythingToTheTimeout) {
  run_ranks(2,
            [](World& world) {
              auto a = world.new_group("a", {0, 1});
              auto b = world.new_group("b", {0, 1});
              EXPECT_THAT(failure_in(world.rank() == 0 ? *a : *b),
                          Not(HasSubstr("wait for each other")));
            },
            {.timeout = std::chrono::seconds(2),
             .stall_check = std::chrono::milliseconds(0)});
}

TEST(StallWatch, TheEndOfAWorldDoesNotWaitForTheNextLook) {
  const auto start = Clock::now();
  run_ranks(2, [](World& world) { barrier(world.group()).wait(); },
            {.stall_check = std::chrono::hours(1)});
  EXPECT_LT(Clock::now() - start, std::chrono::seconds(10));
}

// With the store, the connections and the end of real jobs.
const ProcessBody kCrosses("Crosses", [] {
  auto world =
      World::from_environment({.timeout = std::chrono::minutes(5),
                               .stall_check = std::chrono::milliseconds(300)});
  auto a = world.new_group("a", {0, 1});
  auto b = world.new_group("b", {0, 1});
  barrier(*a).wait();
  barrier(world.rank() == 0 ? *a : *b).wait();
});

TEST(StallWatch, ProcessesThatCrossAllSayTheSame) {
  const auto start = Clock::now();
  ProcessWorld ranks("Crosses", 2);
  const auto results = ranks.wait();
  EXPECT_LT(Clock::now() - start, std::chrono::seconds(20));
  for (const RankResult& result : results) {
    EXPECT_EQ(result.exit_code, 1) << result.output;
    EXPECT_THAT(result.output,
                AllOf(HasSubstr("group 'a', barrier #1, which rank 1 has not"),
                      HasSubstr("group 'b', barrier #0, which rank 0 has not"),
                      Not(HasSubstr("lost the connection"))));
  }
}

// Waits while the rank that serves the store dies: that is the error, and the
// watch does not keep the process.
const ProcessBody kWaitsForRankZero("WaitsForRankZero", [] {
  auto world =
      World::from_environment({.timeout = std::chrono::minutes(5),
                               .stall_check = std::chrono::milliseconds(100)});
  if (world.rank() > 0) {
    std::printf("waits\n");
    std::fflush(stdout);
    barrier(world.group()).wait();
  }
  std::this_thread::sleep_for(std::chrono::seconds(50));
});

TEST(StallWatch, ARankThatDiesMeanwhileIsNamedAsEver) {
  ProcessWorld ranks("WaitsForRankZero", 3);
  for (const int rank : {1, 2}) ranks.wait_for_output(rank, "waits");
  // Until they say in the store that they wait.
  std::this_thread::sleep_for(std::chrono::seconds(1));
  const auto start = Clock::now();
  ranks.kill(0);
  const auto results = ranks.wait();
  EXPECT_LT(Clock::now() - start, std::chrono::seconds(10));
  for (const std::size_t rank : {1, 2}) {
    EXPECT_EQ(results[rank].exit_code, 1) << results[rank].output;
    // And perhaps the other one, which has followed by then.
    EXPECT_THAT(results[rank].output, ContainsRegex("ranks? 0"));
  }
}

}  // namespace
}  // namespace nfold
