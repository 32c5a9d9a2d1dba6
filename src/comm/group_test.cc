#include "nfold/group.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <latch>
#include <string>
#include <thread>

#include "comm/group_impl.h"
#include "nfold/collectives.h"
#include "nfold/errors.h"
#include "testing/process_world.h"
#include "testing/thread_world.h"

namespace nfold {
namespace {

using ::testing::AllOf;
using ::testing::ContainsRegex;
using ::testing::HasSubstr;

std::string failure_of(const std::function<void()>& raise) {
  try {
    raise();
  } catch (const c10::DistBackendError& error) {
    return message_of(error);
  }
  return "no DistBackendError was raised";
}

TEST(Group, OtherCollectiveOnOneRankIsNamedOnAll) {
  run_ranks(3, [](World& world) {
    auto& group = world.group();
    barrier(group).wait();
    group.impl().set_label("step 12, gradient bucket 3");
    const auto text = failure_of([&] {
      if (world.rank() == 1) {
        reduce_scatter(group, at::zeros({4096}), at::zeros({3 * 4096})).wait();
      } else {
        all_gather(group, at::zeros({3 * 8192}), at::zeros({8192})).wait();
      }
    });
    EXPECT_THAT(text, HasSubstr(c10::str("[rank ", world.rank(), "]")));
    EXPECT_THAT(text, HasSubstr("group 'world'"));
    EXPECT_THAT(text, HasSubstr("step 12, gradient bucket 3"));
    EXPECT_THAT(text, HasSubstr("reduce_scatter #1 of 12288 float32"));
    EXPECT_THAT(text, HasSubstr("all_gather #1 of 24576 float32"));
    EXPECT_THAT(text, HasSubstr("rank 1 entered"));
  });
}

// One way in which the call of rank 1 differs from that of the others.
struct Difference {
  const char* name;
  std::function<void(Group&)> usual;
  std::function<void(Group&)> other;
  const char* usual_text;
  const char* other_text;
};

class Divergence : public ::testing::TestWithParam<Difference> {};

TEST_P(Divergence, IsAnErrorOnAllRanks) {
  run_ranks(3, [](World& world) {
    const auto text = failure_of([&] {
      (world.rank() == 1 ? GetParam().other : GetParam().usual)(world.group());
    });
    EXPECT_THAT(text, AllOf(HasSubstr(GetParam().usual_text),
                            HasSubstr(GetParam().other_text)));
    EXPECT_THAT(text, HasSubstr("rank 1 entered"));
  });
}

std::function<void(Group&)> reduces(std::int64_t numel, at::ScalarType dtype,
                                    ReduceOp op = ReduceOp::kSum) {
  return [=](Group& group) {
    all_reduce(group, at::zeros({numel}, dtype), op).wait();
  };
}

std::function<void(Group&)> gathers(std::vector<std::int64_t> numels) {
  return [=](Group& group) {
    std::vector<at::Tensor> outputs;
    for (const auto numel : numels) outputs.push_back(at::zeros({numel}));
    all_gather_coalesced(group, outputs).wait();
  };
}

std::function<void(Group&)> casts_from(int source) {
  return [=](Group& group) { broadcast(group, at::zeros({6}), source).wait(); };
}

std::function<void(Group&)> meets_with_tag(std::uint64_t tag) {
  return [=](Group& group) {
    group.impl().set_tag(tag);
    barrier(group).wait();
  };
}

INSTANTIATE_TEST_SUITE_P(
    Of, Divergence,
    ::testing::Values(
        Difference{"Numel", reduces(8, at::kFloat), reduces(9, at::kFloat),
                   "#0 of 8 float32", "#0 of 9 float32"},
        // Equal bytes.
        Difference{"Dtype", reduces(8, at::kFloat), reduces(16, at::kHalf),
                   "#0 of 8 float32", "#0 of 16 float16"},
        Difference{"Op", reduces(8, at::kFloat),
                   reduces(8, at::kFloat, ReduceOp::kMax),
                   "all_reduce #0 of 8 float32",
                   "all_reduce #0 of 8 float32 (max)"},
        Difference{"NumTensors", gathers({12}), gathers({6, 6}),
                   "#0 of 12 float32", "#0 of 12 float32 in 2 tensors"},
        Difference{"Sizes", gathers({3, 9}), gathers({9, 3}), "in 2 tensors",
                   "the sizes of the tensors differ"},
        Difference{"Source", casts_from(0), casts_from(2), "from group rank 0",
                   "from group rank 2"},
        Difference{"Tag", meets_with_tag(0xab), meets_with_tag(0xcd), "0xab",
                   "0xcd"}),
    [](const auto& info) { return info.param.name; });

TEST(Group, FailedGroupStaysFailed) {
  std::latch have_issued(1);
  run_ranks(2, [&](World& world) {
    auto& group = world.group();
    if (world.rank() == 1) have_issued.wait();
    auto one = all_reduce(group, at::zeros({world.rank() + 1}));
    Pending two;
    // Issued before the failure is known.
    if (world.rank() == 0) {
      two = all_reduce(group, at::zeros({1}));
      have_issued.count_down();
    }
    const auto first = failure_of([&] { one.wait(); });
    EXPECT_THAT(first, HasSubstr("all_reduce #0"));
    EXPECT_EQ(failure_of([&] { one.wait(); }), first);
    if (world.rank() == 0) {
      EXPECT_EQ(failure_of([&] { two.wait(); }), first);
    }
    EXPECT_EQ(failure_of([&] { barrier(group); }), first);
    EXPECT_EQ(failure_of([&] { all_reduce(group, at::zeros({1})); }), first);
  });
}

TEST(Group, DroppedErrorIsRaisedByTheNextCollective) {
  run_ranks(2, [](World& world) {
    auto& group = world.group();
    all_reduce(group, at::zeros({world.rank() + 1}));
    EXPECT_THAT(failure_of([&] { barrier(group).wait(); }),
                HasSubstr("all_reduce #0"));
  });
}

TEST(Group, RankThatNeverComesIsNamedAfterTheTimeout) {
  std::latch have_failed(2);
  run_ranks(
      3,
      [&](World& world) {
        // Rank 2 stays until the others have given up.
        if (world.rank() == 2) {
          have_failed.wait();
          return;
        }
        const auto start = std::chrono::steady_clock::now();
        const auto text = failure_of([&] { barrier(world.group()).wait(); });
        EXPECT_GE(std::chrono::steady_clock::now() - start,
                  std::chrono::milliseconds(900));
        EXPECT_THAT(text, HasSubstr("rank 2 did not enter it within 1 s"));
        have_failed.count_down();
      },
      {.timeout = std::chrono::seconds(1), .limit = std::chrono::seconds(60)});
}

TEST(Group, RankThatLeavesIsNamedAtOnce) {
  const auto start = std::chrono::steady_clock::now();
  run_ranks(3,
            [&](World& world) {
              if (world.rank() == 2) return;
              const auto text = failure_of(
                  [&] { all_reduce(world.group(), at::zeros({9})).wait(); });
              EXPECT_THAT(text,
                          ContainsRegex("connections? to ranks? [0-9, ]*2"));
            },
            {.timeout = std::chrono::minutes(5)});
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
}

TEST(Group, GroupsWorkAtTheSameTime) {
  run_ranks(4, [](World& world) {
    const int column = world.rank() % 2;
    auto evens = world.new_group("evens", {0, 2});
    auto odds = world.new_group("odds", {3, 1});
    Group& half = column == 0 ? *evens : *odds;
    EXPECT_EQ(evens == nullptr, column == 1);
    EXPECT_EQ(half.size(), 2);
    EXPECT_EQ(half.global_ranks()[static_cast<std::size_t>(half.rank())],
              world.rank());
    auto of_half = at::full({1 << 20}, world.rank());
    auto of_world = at::full({1 << 20}, world.rank());
    auto first = all_reduce(half, of_half);
    auto second = all_reduce(world.group(), of_world);
    second.wait();
    first.wait();
    EXPECT_EQ(of_half[0].item<float>(), column == 0 ? 2 : 4);
    EXPECT_EQ(of_world[0].item<float>(), 6);
  });
}

TEST(Group, ErrorsNameRanksOfTheWorld) {
  run_ranks(3, [](World& world) {
    auto group = world.new_group("tail", {1, 2});
    if (!group) return;
    const auto text = failure_of(
        [&] { all_reduce(*group, at::zeros({world.rank()})).wait(); });
    EXPECT_THAT(text, HasSubstr("group 'tail'"));
    const int other = 3 - world.rank();
    EXPECT_THAT(text, HasSubstr(c10::str("rank ", other, " entered")));
  });
}

// Ranks 0 and 1 find out that they did different things; rank 2 waits for rank
// 1 in another group.
TEST(Group, RanksOfOtherGroupsQuoteTheFirstFailureOfTheJob) {
  run_ranks(3, [](World& world) {
    auto head = world.new_group("head", {0, 1});
    auto tail = world.new_group("tail", {1, 2});
    if (head) {
      head->impl().set_label("step 12, unshard h.1");
      EXPECT_THAT(failure_of([&] {
                    all_reduce(*head, at::zeros({world.rank() + 1})).wait();
                  }),
                  HasSubstr("rank 1 entered all_reduce #0 of 2 float32"));
      return;
    }
    EXPECT_THAT(
        failure_of([&] { barrier(*tail).wait(); }),
        AllOf(HasSubstr("[rank 2] group 'tail': barrier #0 failed: lost the "
                        "connection to rank 1"),
              HasSubstr("The first rank of the job to fail says: [rank "),
              HasSubstr("group 'head'"), HasSubstr("step 12, unshard h.1"),
              HasSubstr("rank 1 entered all_reduce #0 of 2 float32")));
  });
}

TEST(Group, IssuingThreadsMayChange) {
  run_ranks(2, [](World& world) {
    auto tensor = at::ones({100});
    for (int i = 0; i < 5; ++i) {
      std::thread([&] { all_reduce(world.group(), tensor).wait(); }).join();
    }
    EXPECT_EQ(tensor[0].item<float>(), 32);
  });
}

TEST(Group, OfOneRankNeedsNoBackend) {
  auto group = make_group({.name = "alone", .global_ranks = {5}}, nullptr);
  EXPECT_EQ(group->name(), "alone");
  auto tensor = at::ones({3});
  all_reduce(*group, tensor).wait();
  EXPECT_TRUE(at::equal(tensor, at::ones({3})));
  EXPECT_EQ(
      group->counts()[static_cast<std::size_t>(Collective::kAllReduce)].calls,
      1);
}

TEST(Group, SpecIsChecked) {
  EXPECT_THROW(make_group({.name = "a", .global_ranks = {}}, nullptr),
               c10::ValueError);
  EXPECT_THROW(make_group({.name = "a", .global_ranks = {0, 1}}, nullptr),
               c10::ValueError);
  EXPECT_THROW(
      make_group({.name = "a", .global_ranks = {0}, .rank = 1}, nullptr),
      c10::ValueError);
}

// A survivor that wrote to the dead rank's socket just then died of SIGPIPE
// itself, without a word, in about one run of a hundred.
TEST(Group, ABrokenPipeDoesNotEndTheProcess) {
  run_ranks(2, [](World& world) { barrier(world.group()).wait(); });
  EXPECT_EQ(::raise(SIGPIPE), 0);  // ends the process where it is not ignored
}

// Ranks 0 and 1 on one made-up host, rank 2 on another.
const ProcessBody kMeetsOnTwoHosts("MeetsOnTwoHosts", [] {
  const bool is_last = std::string(std::getenv("RANK")) == "2";
  ::setenv("NFOLD_HOST", is_last ? "beta" : "alpha", 1);
  auto world = World::from_environment();
  barrier(world.group()).wait();
  std::printf("under way\n");
  std::fflush(stdout);
  for (;;) barrier(world.group()).wait();
});

TEST(Group, ErrorsNameTheHostOfARankThatDied) {
  ProcessWorld ranks("MeetsOnTwoHosts", 3);
  for (int rank = 0; rank < 3; ++rank) ranks.wait_for_output(rank, "under way");
  ranks.kill(2);
  const auto results = ranks.wait();
  for (const std::size_t rank : {0, 1}) {
    EXPECT_EQ(results[rank].exit_code, 1);
    EXPECT_THAT(results[rank].output, ContainsRegex("2 \\(host beta\\)"));
  }
}

TEST(Group, ErrorsNameTheHostOfARankThatDoesNotMove) {
  ProcessWorld ranks("MeetsOnTwoHosts", 3,
                     {.environment = {{"NFOLD_TIMEOUT", "1"}}});
  for (int rank = 0; rank < 3; ++rank) ranks.wait_for_output(rank, "under way");
  ranks.kill(2, SIGSTOP);
  ranks.wait_for_output(0, "2 (host beta)");
  ranks.wait_for_output(1, "2 (host beta)");
  ranks.kill(2);
  const auto results = ranks.wait();
  for (const std::size_t rank : {0, 1}) EXPECT_EQ(results[rank].exit_code, 1);
}

// Large reduce-scatters until something fails; the time-out is far away.
const ProcessBody kReducesForever("ReducesForever", [] {
  auto world = World::from_environment({.timeout = std::chrono::minutes(5)});
  auto& group = world.group();
  const std::int64_t numel = std::int64_t{4} << 20;
  auto full = at::ones({numel * world.size()});
  auto shard = at::empty({numel});
  for (int i = 0;; ++i) {
    reduce_scatter(group, shard, full).wait();
    if (i == 3) {
      std::printf("under way\n");
      std::fflush(stdout);
    }
  }
});

void expect_survivors_name(int victim, int num_ranks) {
  ProcessWorld ranks("ReducesForever", num_ranks);
  for (int rank = 0; rank < num_ranks; ++rank) {
    ranks.wait_for_output(rank, "under way");
  }
  const auto start = std::chrono::steady_clock::now();
  ranks.kill(victim);
  const auto results = ranks.wait();
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(10));
  for (int rank = 0; rank < num_ranks; ++rank) {
    const auto& result = results[static_cast<std::size_t>(rank)];
    if (rank == victim) {
      EXPECT_EQ(result.signal, SIGKILL);
      continue;
    }
    EXPECT_EQ(result.signal, 0) << "rank " << rank;
    EXPECT_EQ(result.exit_code, 1) << result.output;
    EXPECT_FALSE(result.is_late);
    EXPECT_THAT(result.output,
                HasSubstr(c10::str("[rank ", rank, "] group 'world'")));
    EXPECT_THAT(result.output, ContainsRegex(c10::str(
                                   "connections? to ranks? [0-9, ]*", victim)));
  }
}

TEST(Group, KilledRankIsNamedByAllOthersWithinSeconds) {
  expect_survivors_name(2, 3);
}

// Rank 0 also serves the store.
TEST(Group, KilledRankZeroIsNamedByAllOthersWithinSeconds) {
  expect_survivors_name(0, 3);
}

}  // namespace
}  // namespace nfold
