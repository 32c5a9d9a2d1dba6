#include "comm/shm_transport.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>

#include "nfold/collectives.h"
#include "nfold/errors.h"
#include "nfold/world.h"
#include "testing/process_world.h"
#include "testing/raised_text.h"
#include "testing/thread_world.h"

namespace nfold {
namespace {

using ::testing::AllOf;
using ::testing::ContainsRegex;
using ::testing::HasSubstr;

// Made by that process: other jobs of the machine have theirs.
int num_segments_of(pid_t maker) {
  const auto prefix =
      "nfold." + std::to_string(::getuid()) + "." + std::to_string(maker) + ".";
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/dev/shm")) {
    if (entry.path().filename().string().rfind(prefix, 0) == 0) ++count;
  }
  return count;
}

TEST(ShmTransport, IsChosenOnOneHost) {
  run_ranks(3,
            [](World& world) {
              EXPECT_STREQ(world.group().transport(), "shm");
              auto over_gloo =
                  world.new_group("g", {0, 1, 2}, Transport::kGloo);
              EXPECT_STREQ(over_gloo->transport(), "gloo");
              auto alone = world.new_group("alone", {world.rank()});
              EXPECT_STREQ(alone ? alone->transport() : "none", "none");
            },
            {.transport = Transport::kAuto});
}

TEST(ShmTransport, HasNoNameOnceTheGroupIsMade) {
  run_ranks(2,
            [](World& world) {
              barrier(world.group()).wait();
              EXPECT_EQ(num_segments_of(::getpid()), 0);
            },
            {.transport = Transport::kShm});
}

// A world of its own transport and the same calls over gloo: equal bits.
TEST(ShmTransport, GivesTheBitsOfGloo) {
  for (const int num_ranks : {2, 3, 4, 5, 6}) {
    run_ranks(
        num_ranks,
        [](World& world) {
          std::vector<int> all;
          for (int rank = 0; rank < world.size(); ++rank) all.push_back(rank);
          auto gloo = world.new_group("gloo", all, Transport::kGloo);
          for (const std::int64_t numel : {1, 7, 1023, 40000, 300001}) {
            for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
              const auto values =
                  (at::arange(numel, at::kDouble) * (world.rank() + 1.37))
                      .sin();
              auto shm_sum = values.to(dtype);
              auto gloo_sum = values.to(dtype);
              all_reduce(world.group(), shm_sum).wait();
              all_reduce(*gloo, gloo_sum).wait();
              EXPECT_TRUE(at::equal(shm_sum, gloo_sum))
                  << numel << " " << dtype << " " << world.size();
            }
          }
          const auto shm = world.group().counts();
          const auto other = gloo->counts();
          for (std::size_t i = 0; i < shm.size(); ++i) {
            EXPECT_EQ(shm[i].bytes, other[i].bytes);
          }
        },
        {.transport = Transport::kShm});
  }
}

TEST(ShmTransport, ManyMoreRanksThanCoresGetThrough) {
  run_ranks(8,
            [](World& world) {
              auto tensor = at::ones({100000});
              for (int i = 0; i < 50; ++i) {
                tensor.fill_(1);
                all_reduce(world.group(), tensor).wait();
                ASSERT_EQ(tensor[99999].item<float>(), 8);
              }
            },
            {.transport = Transport::kShm});
}

// Until something fails.
template <typename Collective>
void repeat(Collective collective) {
  auto world = World::from_environment({.timeout = std::chrono::minutes(5)});
  barrier(world.group()).wait();
  std::printf("under way\n");
  std::fflush(stdout);
  for (;;) collective(world.group());
}

constexpr std::int64_t kNumel = std::int64_t{3} << 20;

const ProcessBody kGathers("ShmGathers", [] {
  auto full = at::ones({kNumel});
  repeat([&](Group& group) { all_gather_coalesced(group, {full}).wait(); });
});
const ProcessBody kScatters("ShmReduceScatters", [] {
  auto full = at::ones({kNumel});
  repeat([&](Group& group) { reduce_scatter_coalesced(group, {full}).wait(); });
});
const ProcessBody kReduces("ShmAllReduces", [] {
  auto full = at::zeros({kNumel});
  repeat([&](Group& group) { all_reduce(group, full).wait(); });
});
const ProcessBody kSmallReduces("ShmSmallAllReduces", [] {
  auto full = at::zeros({64});
  repeat([&](Group& group) { all_reduce(group, full).wait(); });
});
const ProcessBody kCasts("ShmBroadcasts", [] {
  auto full = at::zeros({kNumel});
  repeat([&](Group& group) { broadcast(group, full, 1).wait(); });
});
const ProcessBody kSwaps("ShmAllToAlls", [] {
  auto input = at::zeros({kNumel});
  auto output = at::zeros({kNumel});
  repeat([&](Group& group) { all_to_all(group, output, input).wait(); });
});
const ProcessBody kMeets("ShmBarriers", [] {
  repeat([](Group& group) { barrier(group).wait(); });
});

class ShmDeath : public ::testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(In, ShmDeath,
                         ::testing::Values("ShmGathers", "ShmReduceScatters",
                                           "ShmAllReduces",
                                           "ShmSmallAllReduces",
                                           "ShmBroadcasts", "ShmAllToAlls",
                                           "ShmBarriers"),
                         [](const auto& info) { return info.param; });

TEST_P(ShmDeath, OfOneRankEndsTheOthersAndLeavesNothing) {
  ProcessWorld ranks(GetParam(), 3,
                     {.environment = {{"NFOLD_TRANSPORT", "shm"}}});
  for (int rank = 0; rank < 3; ++rank) ranks.wait_for_output(rank, "under way");
  const auto start = std::chrono::steady_clock::now();
  ranks.kill(1);
  const auto results = ranks.wait();
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(10));
  for (const std::size_t rank : {0, 2}) {
    EXPECT_EQ(results[rank].exit_code, 1);
    EXPECT_THAT(results[rank].output,
                AllOf(ContainsRegex("connections? to ranks? [0-9, ]*1"),
                      HasSubstr("shared memory")));
  }
  for (int rank = 0; rank < 3; ++rank) {
    EXPECT_EQ(num_segments_of(ranks.pid(rank)), 0);
  }
}

// Each rank on a host of its own, or both on one.
const ProcessBody kSaysTransport("ShmSaysTransport", [] {
  if (std::getenv("TWO_HOSTS") != nullptr) {
    ::setenv("NFOLD_HOST", std::getenv("RANK"), 1);
  }
  auto world = World::from_environment();
  std::printf("transport %s\n", world.group().transport());
});

TEST(ShmTransport, NeedsOneHost) {
  const auto outputs_with = [](std::map<std::string, std::string> variables) {
    ProcessWorld ranks("ShmSaysTransport", 2,
                       {.environment = std::move(variables)});
    std::string outputs;
    for (const auto& rank : ranks.wait()) outputs += rank.output;
    return outputs;
  };
  EXPECT_THAT(outputs_with({{"NFOLD_TRANSPORT", "auto"}, {"TWO_HOSTS", "1"}}),
              HasSubstr("transport gloo"));
  EXPECT_THAT(outputs_with({{"NFOLD_TRANSPORT", "auto"}}),
              HasSubstr("transport shm"));
  EXPECT_THAT(outputs_with({{"NFOLD_TRANSPORT", "shm"}, {"TWO_HOSTS", "1"}}),
              HasSubstr("are on several hosts and share no memory"));
}

}  // namespace
}  // namespace nfold
